"""Many clients at once, of all kinds: each gets what it gets alone, and nothing is left. ``pytest --requests 10000``
sends so many to a server whose memory is watched."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from openai import AsyncOpenAI

from phi4mm.bench.server_process import Clients, serving
from tests.engine.mock_runner import Collector, make_core, make_prompt
from tests.engine.schemas import random_schema
from tests.engine.test_schemas import validate
from tests.serve.conftest import Running, wait_until
from tests.serve.test_chat import audio, image, text

NUM_CLIENTS = 64
NUM_TOKENS = 12
ROOT = Path(__file__).parent.parent.parent


def content(number: int) -> list[dict[str, Any]]:
    words = text(f"What is {number} plus 3?")
    return [[words], [image(), words], [audio(), words], [image(), audio(), words]][number % 4]


def test_clients_of_all_kinds_at_once(server: Running, endless: dict[str, Any]) -> None:
    async def ask(client: AsyncOpenAI, number: int) -> str:
        messages: Any = [{"role": "user", "content": content(number)}]
        options: Any = {"model": "phi4mm", "messages": messages, "max_tokens": NUM_TOKENS}
        if number // 4 % 2:  # half of each kind stream
            reply = await client.chat.completions.create(**options)
            return reply.choices[0].message.content or ""
        chunks = await client.chat.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def leave(client: AsyncOpenAI, number: int) -> None:
        """Go away in the middle; one in two does not stream."""
        options: Any = {"model": "phi4mm", "messages": [{"role": "user", "content": content(number)}], **endless}
        if number % 2:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.chat.completions.create(**options), 0.3)
            return
        stream = await client.chat.completions.create(**options, stream=True)
        async for _ in stream:
            break
        await stream.close()

    async def run() -> tuple[list[str], list[str]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            alone = [await ask(client, number) for number in range(NUM_CLIENTS)]
            server.service.model.drop_caches()
            asked = asyncio.gather(*(ask(client, number) for number in range(NUM_CLIENTS)))
            await asyncio.gather(*(leave(client, number) for number in range(NUM_CLIENTS // 10)))
            return alone, await asked

    alone, together = asyncio.run(run())
    assert together == alone
    wait_until(lambda: server.service.admission.num_requests == 0)
    model = server.service.model
    wait_until(lambda: model.stats().running + model.stats().waiting == 0)
    model.drop_caches()
    wait_until(lambda: model.stats().used_tokens == 0)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    core, _, _ = make_core(num_tokens=1 << 15, max_positions=1 << 14)
    short, long = Collector(), Collector()
    core.submit(make_prompt([1 + index % 7 for index in range(30 * 200)], max_new_tokens=4), long)
    core.step()
    core.submit(make_prompt([8, *(1 + index % 5 for index in range(199))], max_new_tokens=4), short)
    for _ in range(2):
        core.step()
    assert short.tokens
    assert not long.tokens


@pytest.mark.slow
def test_a_list_of_adapters_can_be_read_whenever_the_server_is_killed(tmp_path: Path) -> None:
    script = """
import json, os, random, signal, sys, time
from pathlib import Path
from phi4mm.serve.adapters import AdapterStore
file = Path(sys.argv[1])
store = AdapterStore(None, file, None)
for _ in range(40):
    child = os.fork()
    if not child:
        for number in range(10**9):
            store._loaded = {f"adapter-{index}": "folder" * 50 for index in range(number % 200)}
            store._write()
    time.sleep(random.uniform(0.005, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if file.exists():
        assert isinstance(json.loads(file.read_text())["adapters"], dict)
assert file.exists()
"""
    command = [sys.executable, "-c", script, str(tmp_path / "loaded.json")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    found = Clients()
    yield found
    found.close()


def posted(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": "/v1/chat/completions",
        "type": "application/json",
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "stream": bool(body.get("stream")),
    }


def asked(number: int) -> Any:
    """Mostly texts, of which no two are the same."""
    return content(number) if number % 10 < 4 else f"Count to {number}"


def test_finished_answers_fit_their_schemas(server: Running, clients: Clients, request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("schemas")
    tokenizer = server.service.model.processor.tokenizer
    # What ends strings, numbers, arrays and objects, so that many replies are finished.
    closing = {str(token_id): 4.0 for letter in '"]}' for token_id in tokenizer.encode(letter)}
    schemas = [random_schema(Random(seed)) for seed in range(number)]
    bodies = [
        {
            "messages": [{"role": "user", "content": "Hello"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}},
            "seed": seed,
            "temperature": 4.0,
            "max_tokens": 200,
            "logit_bias": closing,
        }
        for seed, schema in enumerate(schemas)
    ]
    port = int(server.url.rpartition(":")[2])
    answers = clients.run(port, [posted(body) for body in bodies], 32)["answers"]
    finished = refused = 0
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer["status"] in (200, 400), answer
        if answer["status"] == 400:
            assert json.loads(answer["body"])["error"]["message"]
            refused += 1
            continue
        [choice] = json.loads(answer["body"])["choices"]
        if choice["finish_reason"] == "stop":
            finished += 1
            validate(json.loads(choice["message"]["content"]), schema)
    print(f"{number} schemas over the server: {finished} finished and valid, {refused} refused with a 400")
    assert finished > 0.7 * number


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(server: Running, clients: Clients, request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("requests")
    command = [sys.executable, "-m", "phi4mm.serve", "--port", "{port}", "--log-level", "error"]
    command += ["--cache-tokens", "8192"]  # which is full before long
    with serving(command, "/ready", {"PYTHONPATH": str(ROOT), **os.environ}) as served:
        sizes = []
        for turn in range(5):  # the first fifth fills the caches
            bodies = [
                {
                    "messages": [{"role": "user", "content": asked(turn * number + index)}],
                    "max_tokens": 4,
                    "stream": bool(index % 2),
                }
                for index in range(number // 5)
            ]
            answers = clients.run(served.port, [posted(body) for body in bodies], 32)["answers"]
            assert {answer["status"] for answer in answers} == {200}
            sizes.append(served.resident_bytes >> 20)
    print(f"resident MiB after each fifth of {number} requests: {sizes}")
    assert sizes[-1] - sizes[1] < 64

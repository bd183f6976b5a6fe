"""Whatever comes, the answer is an answer or an error object below 500, and the server then still answers.

``--hypothesis-profile=thorough`` tries 1,000 requests.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from tests.serve.conftest import Running, running, wait_until

JSON_TYPE = {"content-type": "application/json"}
CONTROL = (
    "<|end|>",
    "<|system|>",
    "<|assistant|>",
    "<|tool_call|>",
    "<|image_1|>",
    "<|endoftext10|>",
    "../../etc",
    "\0",
)


@pytest.fixture(scope="module")
def target(bundled: Phi4MM) -> Iterator[Running]:
    with running(bundled, ServeOptions(limits=Limits(max_output_tokens=2, body_seconds=0.5))) as server:
        yield server


def png_bomb(width: int, height: int) -> str:
    """A picture that says that it is large, of a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


MEDIA = st.sampled_from(
    [
        *(png_bomb(side, side) for side in (60_000, 7000, 20, 0)),
        "data:,",
        "data:image/png;base64,",
        "data:image/png;base64,====",
        "data:;base64,UklGRiQAAABXQVZF",
        "UEsDBBQAAAAIAA==",
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "",
    ]
)
TEXTS = st.text(max_size=40) | st.sampled_from(CONTROL) | st.sampled_from(["a" * 10_000, "é" * 2000])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | MEDIA | st.just(10**4000 // 3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
PARTS = st.one_of(
    VALUES,
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS | VALUES}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": MEDIA | VALUES})}),
    st.fixed_dictionaries(
        {"type": st.just("input_audio"), "input_audio": st.fixed_dictionaries({"data": MEDIA | VALUES})}
    ),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "x"])},
        optional={
            "content": TEXTS | st.lists(PARTS, max_size=3) | VALUES,
            "tool_calls": VALUES,
            "tool_call_id": VALUES,
        },
    ),
    max_size=4,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function")},
        optional={"function": st.fixed_dictionaries({"name": TEXTS}, optional={"parameters": VALUES}) | VALUES},
    ),
    max_size=3,
)
OPTIONAL: dict[str, Any] = {
    "tools": TOOLS | VALUES,
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | VALUES,
    "response_format": st.builds(lambda schema: {"type": "json_schema", "json_schema": {"schema": schema}}, VALUES)
    | VALUES,
}
FIELDS = """
    model n stop stop_token_ids seed temperature top_p top_k min_p presence_penalty frequency_penalty
    repetition_penalty logit_bias max_tokens stream stream_options regex grammar adapter logprobs top_logprobs
    parallel_tool_calls modalities prompt echo best_of
"""
OPTIONAL |= dict.fromkeys(FIELDS.split(), VALUES)
BODIES = st.fixed_dictionaries({"messages": MESSAGES}, optional=OPTIONAL) | VALUES
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/tokenize"])
MANY = settings().max_examples
HOSTILE = settings(max_examples=MANY if MANY > 100 else 30, deadline=None, suppress_health_check=list(HealthCheck))


def check(answer: httpx2.Response) -> None:
    """An answer, or an error object below 500."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert len(answer.content) < 4000


@HOSTILE
@given(body=BODIES, path=PATHS, cut=st.none() | st.integers(0, 200))
def test_hostile_json(target: Running, body: Any, path: str, cut: int | None) -> None:
    content = json.dumps(body).encode()[:cut]
    check(httpx2.post(target.url + path, content=content, headers=JSON_TYPE, timeout=30))


@HOSTILE
@given(st.binary(max_size=300), PATHS)
def test_hostile_bytes(target: Running, content: bytes, path: str) -> None:
    check(httpx2.post(target.url + path, content=content, headers=JSON_TYPE, timeout=30))


def test_the_server_still_answers(target: Running) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    large = json.dumps({"messages": [{"role": "user", "content": "a " * 5_000_000}]})
    surrogate = '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    for content in (deep, f'{{"messages": {deep}}}', large, surrogate, "null", '"a"', "1" * 100_000):
        answer = httpx2.post(f"{target.url}/v1/chat/completions", content=content, headers=JSON_TYPE, timeout=60)
        check(answer)
        assert answer.status_code >= 400
    for path in ("/v1/models/" + "%2e%2e/" * 20, "/../../etc/passwd", "/v1/models/%00", "/" + "a" * 5000):
        check(httpx2.get(target.url + path))
    host, port = target.url.removeprefix("http://").split(":")
    for sent in (
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            assert b" 200 " not in connection.recv(4096)[:20]
    body = {"messages": [{"role": "user", "content": "What is 2 plus 3?"}]}
    assert httpx2.post(f"{target.url}/v1/chat/completions", json=body, timeout=30).status_code == 200
    wait_until(lambda: target.service.admission.num_requests == 0)
    wait_until(lambda: target.service.model.stats().running == 0)

"""Many clients at once, of all kinds: each gets what it gets alone, and nothing is left."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI

from tests.serve.conftest import Running, wait_until
from tests.serve.test_chat import audio, image, text

NUM_CLIENTS = 24


def content(number: int) -> list[dict[str, Any]]:
    words = text(f"What is {number} plus 3?")
    return [[words], [image(), words], [audio(), words], [image(), audio(), words]][number % 4]


def test_clients_of_all_kinds_at_once(server: Running, endless: dict[str, Any]) -> None:
    async def ask(client: AsyncOpenAI, number: int) -> str:
        options: Any = {"model": "phi4mm", "messages": [{"role": "user", "content": content(number)}], "max_tokens": 12}
        if number % 2:
            reply = await client.chat.completions.create(**options)
            return reply.choices[0].message.content or ""
        chunks = await client.chat.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def leave(client: AsyncOpenAI, number: int) -> None:
        options: Any = {"model": "phi4mm", "messages": [{"role": "user", "content": content(number)}], **endless}
        stream = await client.chat.completions.create(**options, stream=True)
        async for _ in stream:
            break
        await stream.close()

    async def run() -> tuple[list[str], list[str]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            alone = [await ask(client, number) for number in range(NUM_CLIENTS)]
            server.service.model.drop_caches()
            asked = asyncio.gather(*(ask(client, number) for number in range(NUM_CLIENTS)))
            await asyncio.gather(*(leave(client, number) for number in range(0, NUM_CLIENTS, 8)))
            return alone, await asked

    alone, together = asyncio.run(run())
    assert together == alone
    wait_until(lambda: server.service.admission.num_requests == 0)
    stats = server.service.model.stats
    wait_until(lambda: stats().running + stats().waiting == 0)

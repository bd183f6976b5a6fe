"""Many uploads at once: each is transcribed as it is alone, whatever runs beside it."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI

from phi4mm.api import Phi4MM
from tests.serve.conftest import SAMPLES, Running, wait_until

NAMES = ("digit.flac", "three_digits.flac", "eight_digits.flac", "compressed.mp3", "stereo_44khz.wav", "number.flac")
COUNT = 24


def test_uploads_at_once_are_as_alone(server: Running, bundled: Phi4MM) -> None:
    expected = {name: bundled.transcribe(SAMPLES / name).text for name in NAMES}

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:

            async def one(index: int) -> str:
                file = SAMPLES / NAMES[index % len(NAMES)]
                if index % 4 == 3:  # gone before the answer
                    task = asyncio.ensure_future(client.audio.transcriptions.create(model="phi4mm", file=file))
                    await asyncio.sleep(0.05)
                    task.cancel()
                    return ""
                if index % 2:
                    stream = await client.audio.transcriptions.create(model="phi4mm", file=file, stream=True)
                    return "".join([event.delta async for event in stream if event.type == "transcript.text.delta"])
                return (await client.audio.transcriptions.create(model="phi4mm", file=file)).text

            return await asyncio.gather(*map(one, range(COUNT)))

    found = asyncio.run(ask())
    assert found == ["" if index % 4 == 3 else expected[NAMES[index % len(NAMES)]] for index in range(COUNT)]

    def idle() -> bool:
        stats = server.service.model.stats()
        return server.service.admission.num_requests == 0 and stats.running == stats.waiting == 0

    wait_until(idle)

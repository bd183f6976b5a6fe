"""The clients of the server's benchmark: a process of its own, with as little work for each request as can be.

It reads one job as a line of JSON, ``{"host", "port", "together", "requests": [{"path", "type", "body", "stream"}]}``
with bodies as base64, keeps so many requests running at a time, each on a connection of its own, and answers with one
line: what each request took and what came back.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

_LONGEST = 900.0  # seconds that a request may take


@dataclass(frozen=True)
class Answer:
    """What a request came to.

    Attributes:
        status: HTTP's; 0 where the connection failed.
        first: seconds until the first text; the whole answer's where it is not streamed.
        seconds: until the end.
        body: of an answer that is not streamed, or of an error.
        text: of one that is streamed.
    """

    status: int
    first: float
    seconds: float
    body: str = ""
    text: str = ""


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Carry a job out."""
    waiting = asyncio.Semaphore(job["together"])

    async def one(request: dict[str, Any]) -> Answer:
        async with waiting:
            try:
                async with asyncio.timeout(_LONGEST):
                    return await _ask(job["host"], job["port"], request)
            except OSError as error:
                return Answer(0, 0.0, 0.0, body=f"{type(error).__name__}: {error}")

    start = time.perf_counter()
    answers = await asyncio.gather(*map(one, job["requests"]))
    return {"seconds": time.perf_counter() - start, "answers": [asdict(answer) for answer in answers]}


async def _ask(host: str, port: int, request: dict[str, Any]) -> Answer:
    body = base64.b64decode(request["body"])
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    try:
        head = f"POST {request['path']} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        head += f"Content-Type: {request['type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        chunks = _chunks(reader) if b"transfer-encoding: chunked" in headers else _rest(reader)
        received = b""
        first: float | None = None
        streams = request["stream"] and status == 200
        async for chunk in chunks:
            received += chunk
            if streams and first is None and b"content" in received and _text_of(received):
                first = time.perf_counter() - start
        seconds = time.perf_counter() - start
    finally:
        writer.close()
    shown = received.decode("utf-8", "replace")
    if not streams:
        return Answer(status, seconds, seconds, body=shown)
    return Answer(status, seconds if first is None else first, seconds, text=_text_of(received))


async def _chunks(reader: asyncio.StreamReader) -> Any:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _rest(reader: asyncio.StreamReader) -> Any:
    while chunk := await reader.read(1 << 16):
        yield chunk


def _text_of(received: bytes) -> str:
    """The text of the events of a chat's stream that came whole."""
    texts = []
    for line in received.split(b"\n")[:-1]:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: ") :])
        if "error" in event:
            raise OSError(f"the stream ended with an error: {event['error']}")
        for choice in event.get("choices", ()):
            texts.append(choice["delta"].get("content") or "")
    return "".join(texts)


def main() -> None:
    """Answer jobs, a line each, until the input ends."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()

"""Server-sent events that end with the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import ExitStack, aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from phi4mm.serve.errors import as_api_error
from phi4mm.serve.service import dumps

_Result = TypeVar("_Result")
_PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client has closed the connection: nobody waits for the answer."""


async def disconnected(receive: Receive) -> None:
    """Return once the client has gone; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(request: Request, answer: Awaitable[_Result]) -> _Result:
    """The result of ``answer``, which is cancelled once the client has gone.

    Raises:
        ClientGone: it has gone.
    """
    task = asyncio.ensure_future(answer)
    watch = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, watch):
            one.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def begun(events: AsyncGenerator[bytes], seconds: float) -> AsyncGenerator[bytes]:
    """Events once the first one is there, but not for long: until then what is wrong can be the response's status.

    Raises:
        Exception: what the first event raised.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait((first,), timeout=seconds)
        if first.done() and (error := first.exception()) is not None:
            raise error
    except BaseException:
        first.cancel()
        raise

    async def rest() -> AsyncGenerator[bytes]:
        try:
            yield await first
            async for one in events:
                yield one
        finally:
            first.cancel()
            await events.aclose()

    return rest()


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event of JSON data."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {dumps(data)}\n\n".encode()


class EventStream(Response):
    """A stream of events; where none comes for a while a comment is sent. Once the client has gone, or the server
    stops, the iterator is closed, which is how whatever makes the events is ended. An error becomes the last event.

    Args:
        events: an async generator of encoded events.
        owner: what is closed at the end, whether or not the generator was ever begun.
        ping_seconds: that may pass without an event.
        headers: of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        owner: ExitStack,
        *,
        ping_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        self._events = events
        self._owner = owner
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._owner:
            await self._run(receive, send)

    async def _run(self, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for one in (sending, watching):
                one.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._with_pings()) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_pings(self) -> AsyncGenerator[bytes, None]:
        upcoming: asyncio.Task[bytes] | None = None
        try:
            while True:
                upcoming = upcoming or asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait((upcoming,), timeout=self._ping_seconds)
                if not done:
                    yield _PING
                    continue
                try:
                    chunk = upcoming.result()
                except StopAsyncIteration:
                    return
                except Exception as error:
                    yield event(as_api_error(error).to_dict())
                    return
                upcoming = None
                yield chunk
        finally:
            if upcoming is not None and not upcoming.done():
                upcoming.cancel()
                with suppress(asyncio.CancelledError):
                    await upcoming
            await self._events.aclose()

"""Server-sent events that end with the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

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


async def merged(streams: Sequence[AsyncGenerator[_Result, None]]) -> AsyncGenerator[_Result, None]:
    """What several generators yield, as it comes; an exception of one of them ends them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for one in only:
                yield one
        return
    items: asyncio.Queue[Callable[[], _Result] | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_feed(stream, items)) for stream in streams]
    try:
        left = len(tasks)
        while left:
            take = await items.get()
            if take is None:
                left -= 1
            else:
                yield take()
    finally:
        for task in tasks:
            task.cancel()


async def _feed(stream: AsyncGenerator[_Result, None], items: asyncio.Queue[Callable[[], _Result] | None]) -> None:
    """Put what gives a generator's items, or raises its exception, into a queue, and ``None`` at its end."""

    def failed(error: Exception) -> Callable[[], _Result]:
        def fail() -> _Result:
            raise error

        return fail

    try:
        async with aclosing(stream):
            async for one in stream:
                items.put_nowait(partial(_same, one))
        items.put_nowait(None)
    except Exception as error:
        items.put_nowait(failed(error))


def _same(value: _Result) -> _Result:
    return value


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
        self._last = 0.0  # when something was sent last

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
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            async with aclosing(self._events):
                async for chunk in self._events:
                    self._last = asyncio.get_running_loop().time()
                    await send(_body(chunk))
        except Exception as error:
            await send(_body(event(as_api_error(error).to_dict())))
        finally:
            pinging.cancel()
        await send(_body(b"", more=False))

    async def _ping(self, send: Send) -> None:
        """Comments between the events. Each event is sent at once, so that a comment never comes within one."""
        time = asyncio.get_running_loop().time
        self._last = time()
        while True:
            await asyncio.sleep(max(self._last + self._ping_seconds - time(), 0))
            if time() - self._last >= self._ping_seconds:
                self._last = time()
                await send(_body(_PING))


def _body(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}

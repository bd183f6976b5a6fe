"""Give each request to a replica, and to another one if that dies before it has begun to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from phi4mm.serve.admission import Admission, Ticket
from phi4mm.serve.errors import ApiError
from phi4mm.serve.logs import log, request_id
from phi4mm.serve.metrics import Metrics
from phi4mm.serve.middleware import UPLOAD_FOLDER
from phi4mm.serve.service import dumps
from phi4mm.serve.sse import event, until_disconnect

ATTEMPTS = 3  # a request that kills its replica must not kill them all
_PAUSE = 0.2  # seconds before the second attempt; twice as long before the next
PART_BYTES = 4 << 20  # of a body, which are kept apart from the request
_SCOPE = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "client",
    "server",
    "subprotocols",
)
_RESTARTING = 1012  # how a websocket is closed whose server goes away


class ReplicaLost(Exception):
    """The replica that had the request died, or cannot be reached."""


class Channel(Protocol):
    """What a websocket's client sends, on its way to the replica."""

    async def put(self, message: Message) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Forwarded:
    """A request on its way to a replica.

    Attributes:
        scope: ASGI's, the part that can be pickled.
        body: what ``Replicas.keep`` returned for its parts, in order.
        channel: of a websocket.
    """

    scope: dict[str, Any]
    body: tuple[Any, ...] = ()
    channel: Any = None


class Replicas(Protocol):
    """The way to the replicas."""

    async def keep(self, part: bytes) -> Any:
        """Keep a part of a body where all replicas can read it."""

    def open_channel(self) -> Channel:
        """For one websocket."""

    def answer(self, request: Forwarded) -> AsyncGenerator[list[Message], None]:
        """What one of the replicas answers, in ASGI's messages, as many at once as there are. Closed early, it ends
        the request there.

        Raises:
            ReplicaLost: the replica died.
            ApiError: none can take the request.
        """


class Relay:
    """An ASGI app that answers by one of the replicas.

    An answer has begun with the first event of a stream or the acceptance of a websocket; other answers are passed on
    when they are whole.

    Args:
        replicas: the way to them.
        admission: what is let in, and waited for at the end.
        metrics: where lost replicas are counted.
    """

    def __init__(self, replicas: Replicas, admission: Admission, metrics: Metrics) -> None:
        self._replicas = replicas
        self._admission = admission
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        forwarded = Forwarded(_picklable(scope))
        if scope["type"] == "websocket":
            with self._admission.enter():
                pass  # it is let in, but the end does not wait for it
            await self._websocket(forwarded, receive, send)
            return
        with self._admission.enter() as ticket:
            request = Request(scope, receive)
            body = await self._body(request, ticket)
            answer = _Answer(send)

            async def receive_unanswered() -> Message:
                message = await receive()
                if answer.complete:  # uvicorn's way to end: nobody has gone
                    await asyncio.get_running_loop().create_future()
                return message

            work = self._http(replace(forwarded, body=body), answer)
            await until_disconnect(Request(scope, receive_unanswered), work)

    async def _body(self, request: Request, ticket: Ticket) -> tuple[Any, ...]:
        in_memory = not request.url.path.startswith(UPLOAD_FOLDER)
        parts: list[Any] = []
        part = bytearray()
        async for chunk in request.stream():
            if in_memory:
                ticket.take(nbytes=len(chunk))
            part += chunk
            if len(part) >= PART_BYTES:
                parts.append(await self._replicas.keep(bytes(part)))
                part.clear()
        return (*parts, bytes(part))

    async def _http(self, forwarded: Forwarded, answer: _Answer) -> None:
        for attempt in range(ATTEMPTS):
            answer.forget()
            try:
                async with aclosing(self._replicas.answer(forwarded)) as batches:
                    async for batch in batches:
                        for message in batch:
                            await answer.push(message)
                return
            except ReplicaLost as error:
                if answer.complete:
                    return
                self._lost(error, answer.begun)
                if answer.begun:
                    await answer.end_with(_lost_error())
                    return
            await asyncio.sleep(_PAUSE * 2**attempt)
        raise _lost_error()

    async def _websocket(self, forwarded: Forwarded, receive: Receive, send: Send) -> None:
        connect = await receive()
        for attempt in range(ATTEMPTS):
            channel = self._replicas.open_channel()
            pump: asyncio.Task[None] | None = None
            try:
                await channel.put(connect)
                async with aclosing(self._replicas.answer(replace(forwarded, channel=channel))) as batches:
                    async for batch in batches:
                        for message in batch:
                            await send(message)
                            if message["type"] == "websocket.accept":
                                pump = asyncio.ensure_future(_pump(receive, channel))
                return
            except ReplicaLost as error:
                self._lost(error, pump is not None)
                if pump is not None:
                    shown = {"type": "error", **_lost_error().to_dict()}
                    with suppress(OSError, RuntimeError):  # the client may have gone too
                        await send({"type": "websocket.send", "text": dumps(shown)})
                        await send({"type": "websocket.close", "code": _RESTARTING, "reason": "the replica died"})
                    return
            finally:
                if pump is not None:
                    pump.cancel()
                    with suppress(asyncio.CancelledError, ReplicaLost):
                        await pump
                with suppress(ReplicaLost):
                    await channel.close()
            await asyncio.sleep(_PAUSE * 2**attempt)
        raise _lost_error()

    def _lost(self, error: ReplicaLost, begun: bool) -> None:
        self._metrics.replicas_lost.labels("cut" if begun else "tried again").inc()
        log("replica lost", reason=str(error), begun=begun)


class _Answer:
    """An HTTP answer, held back until it must not be given by another replica any more."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._streams = False
        self.begun = False
        self.complete = False

    def forget(self) -> None:
        """What is held back comes from a replica that died."""
        self._held.clear()

    async def push(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
        else:
            self.complete = not message.get("more_body", False)
            self.begun = self.begun or self.complete or (self._streams and bool(message.get("body")))
        self._held.append(message)
        while self.begun and self._held:
            await self._send(self._held.pop(0))

    async def end_with(self, error: ApiError) -> None:
        """An error as the last event."""
        await self._send({"type": "http.response.body", "body": event(error.to_dict()), "more_body": False})


async def _pump(receive: Receive, channel: Channel) -> None:
    while True:
        message = await receive()
        await channel.put(message)
        if message["type"] == "websocket.disconnect":
            return


def _picklable(scope: Scope) -> dict[str, Any]:
    kept = {name: scope[name] for name in _SCOPE if name in scope}
    kept |= {"headers": list(scope["headers"]), "root_path": ""}
    MutableHeaders(scope=kept)["x-request-id"] = request_id.get()
    return kept


def _lost_error() -> ApiError:
    return ApiError(
        503,
        "the replica that answered died; send the request again",
        code="replica_lost",
        headers={"Retry-After": "1"},
    )

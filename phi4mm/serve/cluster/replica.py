"""One replica: the app of a single process, called by messages instead of a socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import ASGIApp, Message

from phi4mm.environment import prepare_environment
from phi4mm.errors import Phi4MMError
from phi4mm.serve import logs
from phi4mm.serve.app import make_app
from phi4mm.serve.cluster.adapters import SharedAdapters
from phi4mm.serve.cluster.relay import Forwarded
from phi4mm.serve.loading import load_model
from phi4mm.serve.options import ServeOptions
from phi4mm.serve.service import Service

_LAST_SECONDS = 5  # that a request whose client has gone has to end by itself


class Replica:
    """Loads the model and answers requests that a front hands over.

    Raises:
        Phi4MMError: the model or an adapter cannot be loaded.
    """

    def __init__(self, options: ServeOptions) -> None:
        prepare_environment(options.model.threads)
        logs.configure(options.log_format, options.log_level)
        self._model = load_model(options.model)
        self._service = Service(self._model, options)
        self._adapters = SharedAdapters(self._model.adapters, options.state_file, options.security.adapters_root)
        self._service.adapters = self._adapters
        for problem in self._adapters.follow():
            logs.log(problem, logging.WARNING)
        self._service.thread_job(self._model.prepare_grammars)
        self._app = make_app(self._service)
        self._name = f"{socket.gethostname()}-{os.getpid()}"

    async def answer(self, request: Forwarded) -> AsyncGenerator[list[Message], None]:
        """ASGI's messages, as many at once as there are. Cancelled or closed, the request is ended."""
        if self._adapters.changed():
            await asyncio.to_thread(self._follow)
        async for batch in run(self._app, request):
            yield batch

    def metrics(self) -> tuple[str, bytes]:
        """A name for this replica, and its metrics in Prometheus's text format."""
        return self._name, self._service.metrics.render()

    def check_health(self) -> None:
        """Raises:
        ClosedError: the engine has ended; the replica must be replaced.
        """
        self._model.stats()

    def _follow(self) -> None:
        try:
            problems = self._adapters.follow()
        except Phi4MMError as error:
            problems = [str(error)]
        for problem in problems:
            logs.log(problem, logging.WARNING)


async def run(app: ASGIApp, request: Forwarded) -> AsyncGenerator[list[Message], None]:
    """Call an ASGI app; what it sends comes in batches."""
    outgoing: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    parts = list(request.body)

    async def receive() -> Message:
        if request.channel is not None:
            message: Message = await request.channel.get()
            return message
        if parts:
            part: Any = parts.pop(0)
            body = part if isinstance(part, bytes) else await part
            return {"type": "http.request", "body": body, "more_body": bool(parts)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        outgoing.put_nowait(message)

    extensions: dict[str, Any] = {"websocket.http.response": {}} if request.channel is not None else {}
    scope = {**request.scope, "asgi": {"version": "3.0", "spec_version": "2.4"}, "extensions": extensions, "state": {}}
    task = asyncio.ensure_future(app(scope, receive, send))
    task.add_done_callback(lambda _: outgoing.put_nowait(None))
    try:
        ended = False
        while not ended:
            batch = [await outgoing.get()]
            while not outgoing.empty():
                batch.append(outgoing.get_nowait())
            ended = batch[-1] is None
            if messages := [message for message in batch if message is not None]:
                yield messages
        task.result()
    finally:
        gone.set()
        await asyncio.wait((task,), timeout=_LAST_SECONDS)
        task.cancel()

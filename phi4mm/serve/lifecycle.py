"""From the socket to the last answer: starting, and ending without a loss."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Mapping
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette

from phi4mm.errors import Phi4MMError
from phi4mm.serve.admission import Admission
from phi4mm.serve.logs import log
from phi4mm.serve.options import ServeOptions

_LAST_SECONDS = 5  # that answers have to be sent, once nothing runs any more


class Served(Protocol):
    """What is behind an app, its ``state.service``.

    Attributes:
        admission: of its requests.
    """

    admission: Admission

    @property
    def shown(self) -> Mapping[str, Any]:
        """What the log says of it at the start."""

    def abandon(self) -> None:
        """End what runs; every request is told so. It may block."""


class Server(uvicorn.Server):
    """Serves an app until a signal. With the first one no request is let in any more, and those that run are finished
    within the time of the options; a second one ends them at once."""

    def __init__(self, app: Starlette, options: ServeOptions) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=options.host,
                port=options.port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws_max_size=options.limits.max_body_bytes,
                timeout_graceful_shutdown=_LAST_SECONDS,
                ssl_certfile=options.tls_certificate,
                ssl_keyfile=options.tls_key,
            )
        )
        self._service: Served = app.state.service
        self._seconds = options.drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        log(
            "serving",
            url=f"{'https' if self.config.is_ssl else 'http'}://{f'[{host}]' if ':' in host else host}:{port}",
            **self._service.shown,
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end, signal.Signals(sig).name)
        else:
            self.should_exit = True

    def _end(self, reason: str) -> None:
        if self._drain is not None:
            self.should_exit = True
            return
        log("draining", reason=reason, requests=self._service.admission.num_requests, seconds=self._seconds)
        self._service.admission.draining = True
        self._drain = asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._service.admission.idle()
        except TimeoutError:
            log("ended early", logging.WARNING, requests=self._service.admission.num_requests)
            await asyncio.to_thread(self._service.abandon)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound before the model is loaded, so that a port that is taken shows at once.

    Raises:
        Phi4MMError: it cannot be bound.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise Phi4MMError(f"cannot listen on {host}, port {port} ({error}); choose others by --host, --port") from error
    return bound

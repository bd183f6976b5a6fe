"""Web pages of other sites: a browser lets them send to a server on this machine unless the server refuses."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from phi4mm.serve.errors import ApiError
from phi4mm.serve.options import ServeOptions

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class OriginCheck:
    """Refuses requests whose ``Origin`` is neither the server's own nor allowed.

    Args:
        allowed: origins, or "*".
        local: also refuse names of other machines in ``Host``: a page whose name is made to point to this machine would
            be of the same origin.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str], local: bool) -> None:
        self._app = app
        self._allowed = frozenset(allowed)
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            self._check(Headers(scope=scope))
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin not in self._allowed and "*" not in self._allowed and not _same(origin, host):
            raise ApiError(403, "this page's origin is not allowed; start the server with --cors-origin", code="origin")
        if self._local and _hostname(f"//{host}") not in _LOOPBACK:
            raise ApiError(403, "the Host header names another machine; this server listens on localhost", code="host")


def is_local(options: ServeOptions) -> bool:
    """Whether the server listens on the machine itself alone, for everybody there."""
    return options.host in _LOOPBACK and not options.security.api_keys


def _same(origin: str, host: str) -> bool:
    return bool(host) and origin.partition("://")[2].lower() == host.lower()


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None

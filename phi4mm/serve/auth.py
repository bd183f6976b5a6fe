"""Keys: who may use the endpoints, and who may load adapters."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from phi4mm.serve.errors import ApiError
from phi4mm.serve.options import Security

OPEN_PATHS = frozenset({"/", "/health", "/ready", "/version", "/metrics"})
OPEN_FOLDER = "/static/"  # what the page is made of
ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_SUBPROTOCOL = "openai-insecure-api-key."  # by which pages give a key to a websocket


class Keys:
    """Keys that are compared in a time that does not depend on them; only their digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, key: str) -> bool:
        given = _digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0  # all of them are compared


class KeyCheck:
    """Refuses what has not the key that its path needs. Paths that are not listed as open need one."""

    def __init__(self, app: ASGIApp, security: Security) -> None:
        self._app = app
        self._keys = Keys(security.api_keys)
        self._admin = Keys([security.admin_key] if security.admin_key else [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in ADMIN_PATHS:
            if not self._admin:
                raise ApiError(403, "this server loads no adapters by request; start it with an admin key")
            keys = self._admin
        elif path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or scope.get("method") == "OPTIONS":
            return
        else:
            keys = self._keys
            if not keys:
                return
        if given_key(headers) not in keys:
            raise ApiError(
                401,
                "the API key is missing or wrong; expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def given_key(headers: Headers) -> str:
    """The key of a request, from its ``Authorization`` or, of a websocket, from its subprotocols; empty if none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered = [one.strip() for one in headers.get("sec-websocket-protocol", "").split(",")]
    return next((one[len(_SUBPROTOCOL) :] for one in offered if one.startswith(_SUBPROTOCOL)), "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

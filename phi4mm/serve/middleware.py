"""Around every request: its id, its log line, its errors, and bounds of its body."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi4mm.serve.errors import ApiError, as_api_error
from phi4mm.serve.limits import Limits
from phi4mm.serve.logs import log, request_id
from phi4mm.serve.metrics import Metrics
from phi4mm.serve.sse import ClientGone

_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked for every few seconds
CLIENT_GONE = 499  # as nginx logs it; nobody receives it
UPLOAD_FOLDER = "/v1/audio/"  # whose bodies are multipart forms, which go to disk


class RequestContext:
    """Gives each request an id, turns whatever is raised within into an error object, counts and logs."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _OWN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        token = request_id.set(name)
        began, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["x-content-type-options"] = "nosniff"
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        self._metrics.http_requests_in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except (ClientGone, ClientDisconnect):
            status = CLIENT_GONE
        except Exception as error:
            shown = as_api_error(error)
            if shown.status >= 500 and not isinstance(error, ApiError):
                log("failed", logging.ERROR, error=error)
            if status == 0:
                await shown.response()(scope, receive, send_with_id)
            elif scope["type"] == "http":
                raise  # the answer has begun: the connection is cut, so that it is not taken for whole
        finally:
            self._metrics.http_requests_in_flight.dec()
            if status >= 400:
                self._metrics.request_failures.labels(str(status)).inc()
            log(
                "request",
                logging.DEBUG if scope["path"] in QUIET else logging.INFO,
                method=scope.get("method", "WEBSOCKET"),
                path=getattr(scope.get("route"), "path", None) or None,  # the route's, as a path may hold anything
                status=status,
                seconds=round(time.monotonic() - began, 4),
            )
            request_id.reset(token)


class BodyLimit:
    """Bounds the size of a body, and the time in which it must arrive. Compressed bodies are refused."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_upload = scope["path"].startswith(UPLOAD_FOLDER)
        most = self._limits.max_upload_bytes if is_upload else self._limits.max_body_bytes
        seconds = self._limits.upload_seconds if is_upload else self._limits.body_seconds
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "the body is compressed; send it as it is")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > most:
            raise _too_large(most)
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + seconds

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(
                    408, f"the body did not arrive in {seconds:g} s", headers={"Connection": "close"}
                ) from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > most:
                raise _too_large(most)
            return message

        await self._app(scope, bounded, send)


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body is over this server's {most} bytes", code="too_large", headers={"Connection": "close"}
    )

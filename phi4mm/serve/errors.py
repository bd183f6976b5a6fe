"""Every error that a client sees: OpenAI's error object with its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from phi4mm.engine.core import EngineError
from phi4mm.errors import ClosedError, Phi4MMError

MOST_CHARACTERS = 500  # of a message: what a client sent may be quoted in it
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did wrong, or what the server cannot do now.

    Args:
        status: HTTP's.
        message: for people; cut short.
        param: the field that it is about.
        code: for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = cut(message)
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.to_dict(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: Exception) -> ApiError:
    """What a client is shown of any error. Of one that nobody expected it sees that it happened, no more."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClosedError):
        return ApiError(503, "the model is shutting down; try again", code="closed", headers={"Retry-After": "5"})
    if isinstance(error, EngineError):
        return ApiError(500, str(error), code="engine_error")
    if isinstance(error, Phi4MMError):
        return bad_request(str(error))
    if isinstance(error, ValidationError | RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        message = error.detail if isinstance(error.detail, str) else "the request cannot be carried out"
        return ApiError(error.status_code, message, headers=error.headers)
    return ApiError(500, "the server failed; its log has the request's id", code="internal_error")


def install(app: FastAPI) -> None:
    """Let every error that an endpoint raises be answered as an error object."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, Phi4MMError, RequestValidationError, ValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _of_validation(error: ValidationError | RequestValidationError) -> ApiError:
    """The first of the errors that pydantic found, without the values that it quotes."""
    if isinstance(error, ValidationError):
        first: Mapping[str, Any] = error.errors(include_url=False, include_context=False, include_input=False)[0]
    else:
        first = error.errors()[0]
    place = first["loc"]
    if first["type"] == "json_invalid" or not place:
        return bad_request(f"the body is not what is expected: {first['msg']}")
    param = cut(str(place[0]) + "".join(f"[{part}]" for part in place[1:] if isinstance(part, int)))
    return bad_request(f"{param}: {first['msg']}", param, "invalid_value")

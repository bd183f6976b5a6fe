"""What endpoints share: one ``Service`` for each app."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request

from phi4mm.api import Phi4MM
from phi4mm.diarization.diarizer import Diarizer
from phi4mm.serve.adapters import AdapterStore
from phi4mm.serve.admission import Admission, Ticket
from phi4mm.serve.errors import ApiError, bad_request
from phi4mm.serve.fetch import Fetcher
from phi4mm.serve.limits import MOST_ON_CPU
from phi4mm.serve.metrics import Metrics
from phi4mm.serve.options import ServeOptions

_Body = TypeVar("_Body", bound=BaseModel)
_Result = TypeVar("_Result")
_PARSED_IN_LOOP = 64 * 1024  # bytes of JSON that are parsed at once, without another thread


class Service:
    """The model and all that stands around it.

    Attributes:
        model: shared by all requests.
        options: of the server.
        metrics, admission, adapters, fetcher, diarizer: see their modules.
    """

    def __init__(self, model: Phi4MM, options: ServeOptions, *, fetcher: Fetcher | None = None) -> None:
        self.model = model
        self.options = options
        self.limits = options.limits
        self.metrics = Metrics(model, options.metrics_prefix)
        self.admission = Admission(options.limits, options.model.max_rows, self.metrics)
        self.adapters = AdapterStore(model.adapters, options.state_file, options.security.adapters_root)
        self.fetcher = fetcher or Fetcher(options.fetch, options.security.allowed_domains)
        self.diarizer = Diarizer()
        self._threads = ThreadPoolExecutor(options.media_threads, "phi4mm-serve")
        self._upload_threads = ThreadPoolExecutor(options.media_threads, "phi4mm-serve-upload")

    @property
    def shown(self) -> dict[str, str | None]:
        """What the log says at the start."""
        return {"model": self.options.names[0], "adapters": ",".join(self.adapters.names) or None}

    def abandon(self) -> None:
        """End what runs: the model is closed, and every request is told so."""
        self.model.close()

    def close(self) -> None:
        """End the threads; the model is its owner's to close."""
        self.diarizer.close()
        for threads in (self._threads, self._upload_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def thread_job(self, function: Callable[[], _Result]) -> Future[_Result]:
        """Call a function in one of the threads for media and other long work."""
        return self._threads.submit(contextvars.copy_context().run, function)

    async def in_thread(self, function: Callable[[], _Result]) -> _Result:
        """What a function returns, which is called in one of these threads."""
        return await asyncio.wrap_future(self.thread_job(function))

    async def in_upload_thread(self, function: Callable[[], _Result]) -> _Result:
        """As ``in_thread``, for reading on in uploaded files: hours of silence in one do not keep others' media."""
        job = self._upload_threads.submit(contextvars.copy_context().run, function)
        return await asyncio.wrap_future(job)

    async def read_json(self, request: Request, kind: type[_Body], ticket: Ticket) -> _Body:
        """A request's JSON body, checked.

        Raises:
            ApiError: it is not sent as JSON, or there is no memory for it.
            ValidationError: it is not what ``kind`` has.
        """
        check_json_type(request)
        chunks = []
        async for chunk in request.stream():
            ticket.take(nbytes=len(chunk))
            chunks.append(chunk)
        body = b"".join(chunks)
        if len(body) <= _PARSED_IN_LOOP:
            return kind.model_validate_json(body)
        return await self.in_thread(lambda: kind.model_validate_json(body))

    def check_prompt(self, num_tokens: int) -> None:
        """Refuse a prompt that is longer than this server takes.

        Raises:
            ApiError: it is.
        """
        most = self.limits.max_prompt_tokens
        if most is None:
            most = self.model.model.config.decoder.max_positions
            if self.model.device_info.device.type == "cpu":
                most = min(most, MOST_ON_CPU)
        if num_tokens > most:
            raise bad_request(
                f"the prompt is {num_tokens} tokens long, its media included; this server takes at most {most}",
                code="context_length_exceeded",
            )

    def resolve(self, name: str | None) -> str | None:
        """The adapter that a request's ``model`` names: ``None`` for the model itself, whose adapters are routed.

        Raises:
            ApiError: it is neither one of the model's names nor an adapter's, nor several adapters' joined with "+".
        """
        if name is None or name in self.options.names:
            return None
        known = {*self.model.adapters.names, "auto"}
        if all(part in known for part in name.split("+")):
            return name
        raise ApiError(
            404,
            f"the model {name!r} does not exist; GET /v1/models lists those that do",
            param="model",
            code="model_not_found",
        )


def service_of(connection: HTTPConnection) -> Service:
    """The service of the app that a request or websocket came to."""
    service: Service = connection.app.state.service
    return service


def check_json_type(request: Request) -> None:
    """Pages of other sites can send bodies of other types without asking."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the body's type is not JSON; send it with Content-Type: application/json")


def dumps(value: Any) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

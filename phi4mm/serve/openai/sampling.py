"""The fields by which clients choose how tokens are chosen, to ``SamplingParams``."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from phi4mm.serve.errors import bad_request
from phi4mm.serve.limits import Limits
from phi4mm.serve.service import Service

_MOST = 2**31 - 1
_Number = Annotated[float, Field(allow_inf_nan=False)]


class SamplingBody(BaseModel):
    """What chat and completions share. Fields that are not listed are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = Field(None, max_length=512)
    n: int | None = Field(None, ge=1, le=_MOST)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    temperature: _Number | None = Field(None, ge=0, le=100)
    top_p: _Number | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_MOST)
    min_p: _Number | None = Field(None, ge=0, le=1)
    presence_penalty: _Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: _Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: _Number | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, _Number] | None = Field(None, max_length=1024)
    max_tokens: int | None = Field(None, ge=1, le=_MOST)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    adapter: str | list[str] | None = None

    @property
    def num_replies(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool((self.stream_options or {}).get("include_usage"))


def sampling_options(
    body: SamplingBody, limits: Limits, *, max_tokens: int | None, logprobs: int | None
) -> dict[str, Any]:
    """The fields of ``SamplingParams`` that a body gives, and ``response_format``, ``regex`` or ``grammar``.

    Raises:
        ApiError: a value is over this server's limits.
    """
    options: dict[str, Any] = {
        "n": body.num_replies,
        "max_new_tokens": min(max_tokens or limits.default_output_tokens, limits.max_output_tokens),
        "logprobs": logprobs,
        "seed": body.seed,
    }
    _at_most("n", body.num_replies, limits.max_n)
    for name in ("temperature", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        if (value := getattr(body, name)) is not None:
            options[name] = value
    if body.top_p is not None:
        if body.top_p > 0:
            options["top_p"] = body.top_p
        else:
            options["top_k"] = 1  # what is left of the probability as it goes to 0
    if body.top_k is not None and body.top_k > 0 and "top_k" not in options:
        options["top_k"] = body.top_k
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    _at_most("stop", len(stop), limits.max_stop)
    if any(len(one) > 1024 for one in stop):
        raise bad_request("stop: a string is over 1024 characters", "stop")
    options["stop"] = [one for one in stop if one]
    options["stop_token_ids"] = body.stop_token_ids or []
    options["logit_bias"] = _biases(body.logit_bias or {})
    return options | _output(body, limits)


def adapter_of(body: SamplingBody, service: Service) -> str | tuple[str, ...] | None:
    """The adapter that a request asks for: by its field ``adapter``, by its ``model``, or the routed one.

    Raises:
        ApiError: the model does not exist.
    """
    named = service.resolve(body.model)
    if "adapter" not in body.model_fields_set:
        return named or "auto"
    return tuple(body.adapter) if isinstance(body.adapter, list) else body.adapter


def logprobs_of(asked: bool, top: int | None, limits: Limits, param: str = "top_logprobs") -> int | None:
    """How many log-probabilities of each token are reported.

    Raises:
        ApiError: more than the server reports.
    """
    if not asked:
        return None
    _at_most(param, top or 0, limits.max_top_logprobs)
    return top or 0


def _output(body: SamplingBody, limits: Limits) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if body.response_format is not None:
        kind = body.response_format.get("type")
        if kind not in ("text", "json_object", "json_schema"):
            raise bad_request("response_format: type is not text, json_object or json_schema", "response_format")
        if kind == "json_schema":
            inner = body.response_format.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict | bool):
                raise bad_request('response_format: expected json_schema: {"name", "schema"}', "response_format")
            check_bytes("response_format", inner["schema"], limits)
        if kind != "text":
            given["response_format"] = body.response_format
    for name in ("regex", "grammar"):
        if (value := getattr(body, name)) is not None:
            check_bytes(name, value, limits)
            given[name] = value
    if len(given) > 1:
        raise bad_request(f"{' and '.join(given)} are given; expected one of them", next(iter(given)))
    return given


def check_bytes(param: str, value: Any, limits: Limits) -> None:
    """Refuse a schema or the like that is too large to be compiled: a text, or what JSON is made of."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (ValueError, RecursionError) as error:  # whole numbers of thousands of digits
        raise bad_request(f"{param}: cannot be written as JSON", param) from error
    if len(text.encode("utf-8", "surrogatepass")) > limits.max_schema_bytes:
        raise bad_request(f"{param}: is over this server's {limits.max_schema_bytes} bytes", param, "too_large")


def _biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): bias for token_id, bias in given.items()}
    except ValueError as error:
        raise bad_request("logit_bias: expected token ids, as strings, with numbers", "logit_bias") from error


def _at_most(param: str, value: int, most: int) -> None:
    if value > most:
        raise bad_request(f"{param}: {value} is over this server's limit of {most}", param, "over_limit")

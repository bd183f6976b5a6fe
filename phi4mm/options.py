"""The fields of requests as keyword arguments, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from phi4mm.types import LogitsProcessor, OutputFormat, SamplingParams


class SamplingOptions(TypedDict, total=False):
    """The fields of ``SamplingParams``, as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    banned_tokens: Sequence[int]
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: int | None
    n: int
    seed: int | None
    processors: Sequence[LogitsProcessor]
    output: OutputFormat | None


class DecodingOptions(SamplingOptions, total=False):
    """How a request is answered, as keyword arguments: its adapter, and ``SamplingParams`` whole or by field."""

    adapter: str | tuple[str, ...] | None
    sampling: SamplingParams


class RequestOptions(DecodingOptions, total=False):
    """The fields of ``Request`` beside its text, as keyword arguments."""

    images: Sequence[Any]
    audios: Sequence[Any]
    system: str | None
    history: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool


class ChatOptions(RequestOptions, total=False):
    """``RequestOptions``, and other ways to write ``output``: see ``OutputFormat.of``."""

    response_format: Any
    regex: str | None
    grammar: str | None

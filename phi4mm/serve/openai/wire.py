"""What replies share on the wire: usage, log-probabilities, routes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from phi4mm.inputs.processor import Row
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.types import Reply, Route, TokenLogprob

_LEAST_LOGPROB = -9999.0  # what OpenAI has for a token that cannot be: JSON has no infinity


def new_id(prefix: str) -> str:
    """An id of a reply, such as ``chatcmpl-...``."""
    return f"{prefix}-{secrets.token_hex(12)}"


def route_object(route: Route) -> dict[str, Any]:
    """The extra field that reports how a request was answered."""
    return {"adapters": list(route.adapters), "audio_projector": route.audio_projector}


def usage_object(row: Row, replies: Sequence[Reply]) -> dict[str, Any]:
    """Tokens of a request and of all replies to it."""
    tokens = {kind: sum(item.num_tokens for item in row.media if item.kind == kind) for kind in ("audio", "image")}
    prompt, completion = len(row.token_ids), sum(reply.usage.new_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "audio_tokens": tokens["audio"],
            "image_tokens": tokens["image"],
            "text_tokens": prompt - tokens["audio"] - tokens["image"],
            "cached_tokens": replies[0].usage.cached_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def logprob_list(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """OpenAI's ``logprobs.content``."""
    return [
        {
            **_logprob(token.token_id, token.logprob, tokenizer),
            "top_logprobs": [_logprob(token_id, logprob, tokenizer) for token_id, logprob in token.top],
        }
        for token in tokens
    ]


def _logprob(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    content = tokenizer.token_bytes(token_id)
    return {
        "token": content.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(content),
    }


def finite(logprob: float) -> float:
    """A log-probability that JSON can express."""
    return max(logprob, _LEAST_LOGPROB)

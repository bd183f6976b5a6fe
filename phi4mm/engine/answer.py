"""Generated tokens to a reply's text: whole characters, cut at stop strings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from phi4mm.engine.sampler import Choice
from phi4mm.inputs.tokenizer import TextStream, Tokenizer
from phi4mm.inputs.tool_calls import parse_tool_calls
from phi4mm.types import Reply, Route, SamplingParams, TokenLogprob, Usage


class Answer:
    """The text of one row as its tokens come.

    Args:
        route: of the row.
        num_prompt: tokens of its prompt.
        tokenizer: of the checkpoint.
        params: stop strings, and whether log-probabilities are reported.
        stop_token_ids: tokens that end the text and are not part of it.
        tools: of the request; calls of them are found in some forms that are not marked.
    """

    def __init__(
        self,
        route: Route,
        num_prompt: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stop_token_ids: Collection[int],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._route = route
        self._num_prompt = num_prompt
        self._stream = TextStream(tokenizer)
        self._stop = tuple(params.stop)
        self._logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._stop_token_ids = frozenset(stop_token_ids)
        self._tools = tools
        self._token_ids: list[int] = []
        self._num_new = 0
        self._num_cached = 0
        self._logprob = 0.0  # of all tokens so far
        self._text = ""
        self._emitted = 0
        self._finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the reply is complete."""
        return self._finish_reason is not None

    def push(self, choice: Choice, finish_reason: str | None, num_cached: int = 0) -> str:
        """Take the row's next token and return the text that is now certain to be part of the reply."""
        self._num_new += 1
        self._num_cached = num_cached
        self._logprob += choice.logprob
        if choice.token_id not in self._stop_token_ids:
            self._token_ids.append(choice.token_id)
            self._text += self._stream.push(choice.token_id)
            if self._logprobs is not None:
                self._logprobs.append(TokenLogprob(choice.token_id, choice.logprob, choice.top))
        if finish_reason is not None:
            self._text += self._stream.finish()
        found = [place for place in map(self._text.find, self._stop) if place >= 0]
        if found:
            self._text, finish_reason = self._text[: min(found)], "stop"
        self._finish_reason = finish_reason
        end = len(self._text) - (self._held_back() if finish_reason is None else 0)
        piece = self._text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece

    def logprobs(self, start: int) -> tuple[TokenLogprob, ...]:
        """Of the tokens from number ``start`` on, if they are asked for."""
        return tuple(self._logprobs[start:]) if self._logprobs is not None else ()

    def cancel(self) -> str:
        """End it from outside and return the text that was held back."""
        piece, self._emitted = self._text[self._emitted :], len(self._text)
        return piece

    def _held_back(self) -> int:
        """Length of the longest end of the text that may be the beginning of a stop string."""
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(self._text)) + 1)
                if self._text.endswith(stop[:size])
            ),
            default=0,
        )

    def reply(self) -> Reply:
        """The finished reply; of one that was ended from outside, what came until then."""
        _, calls = parse_tool_calls(self._text, self._tools)
        reason = self._finish_reason or "cancelled"
        return Reply(
            text=self._text,
            token_ids=tuple(self._token_ids),
            route=self._route,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            avg_logprob=self._logprob / max(self._num_new, 1),
            usage=Usage(self._num_prompt, self._num_new, self._num_cached),
            tool_calls=calls,
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
        )

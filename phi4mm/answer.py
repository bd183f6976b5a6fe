"""Generated tokens to a reply's text: whole characters, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from phi4mm.engine.engine import Step
from phi4mm.inputs.processor import Row
from phi4mm.inputs.prompt import parse_tool_calls
from phi4mm.inputs.tokenizer import TextStream, Tokenizer
from phi4mm.types import Reply, Usage


class Answer:
    """The text of one row as its tokens come.

    Args:
        row: the prompt that is being answered.
        tokenizer: of the checkpoint.
        stop: strings that end the text and are not part of it.
        stop_token_ids: tokens that end it.
    """

    def __init__(self, row: Row, tokenizer: Tokenizer, stop: Sequence[str], stop_token_ids: Sequence[int]) -> None:
        self._row = row
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._token_ids: list[int] = []
        self._num_new = 0
        self._log_probability = 0.0  # of all tokens so far
        self._text = ""
        self._emitted = 0
        self._finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the reply is complete."""
        return self._finish_reason is not None

    @property
    def found_stop(self) -> bool:
        """Whether a stop string was found, so that the row need not go on."""
        return self._finish_reason == "stop"

    def push(self, step: Step) -> str:
        """Take the row's next token and return the text that is now certain to be part of the reply."""
        token_id, finish_reason = step.token_id, step.finish_reason
        self._num_new += 1
        self._log_probability += step.log_probability
        if token_id not in self._stop_token_ids:
            self._token_ids.append(token_id)
            self._text += self._stream.push(token_id)
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
        """The finished reply."""
        return Reply(
            text=self._text,
            token_ids=tuple(self._token_ids),
            route=self._row.route,
            finish_reason=self._finish_reason or "length",
            avg_logprob=self._log_probability / max(self._num_new, 1),
            usage=Usage(prompt_tokens=len(self._row.token_ids), new_tokens=self._num_new),
            tool_calls=parse_tool_calls(self._text),
        )

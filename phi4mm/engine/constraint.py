"""What one row may generate next, by its grammar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phi4mm.errors import PromptError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

FUNCTOOLS = b"functools["  # what vLLM's template has Phi-4-mini write before its calls


class Constraint:
    """Holds a row to a grammar: from its first token on, or, with a trigger, from where the row begins a tool call.
    It is used by one thread at a time.

    Args:
        matcher: of the grammar, at its start.
        tokenizer: of the same.
        stop_token_ids: tokens that end the row beside the checkpoint's own.
        trigger: the token that begins a tool call. It, or the text ``functools[``, begins the grammar; until then the
            row is free. ``None``: the grammar holds from the start.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        tokenizer: LLTokenizer,
        *,
        stop_token_ids: Iterable[int] = (),
        trigger: int | None = None,
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._stop_token_ids = tuple(stop_token_ids)
        self._trigger = trigger
        self._tail = b""
        self.active = trigger is None

    def copy(self) -> Constraint:
        """Another one for a row of the same grammar; only before the first token."""
        return Constraint(
            self._matcher.deep_copy(), self._tokenizer, stop_token_ids=self._stop_token_ids, trigger=self._trigger
        )

    def push(self, token_id: int) -> None:
        """Take the token that was chosen."""
        if self.active:
            self._matcher.consume_token(token_id)
        elif token_id == self._trigger:
            self.active = self._matcher.consume_token(token_id)
        else:
            self._find_text(token_id)

    def mask(self) -> NDArray[np.uint8]:
        """The tokens that may come next, a bit each, the lowest first; filled up with zeros to a multiple of 32.

        Raises:
            PromptError: no text fits the grammar, or a limit of the parser was passed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            reason = self._matcher.get_error().split("\n")[0]
            if "NoExtension" in reason:
                raise PromptError("no text fits the grammar of the output; correct it")
            raise PromptError(
                f"the grammar of the output is too complex to go on ({reason:.100}); simplify the schema or grammar"
            )
        if self._stop_token_ids:
            bits = bits.copy()
            ends = self._matcher.is_accepting()
            for token_id in self._stop_token_ids:
                bit = np.uint8(1 << token_id % 8)
                bits[token_id // 8] = bits[token_id // 8] | bit if ends else bits[token_id // 8] & ~bit
        return bits

    def _find_text(self, token_id: int) -> None:
        """Begin the grammar where the text of the trigger ends in this token and what follows in it fits."""
        self._tail += self._tokenizer.decode_bytes([token_id])
        place = self._tail.find(FUNCTOOLS)
        if place >= 0:
            tokens = self._tokenizer.tokenize_bytes(self._tail[place:])
            if self._matcher.validate_tokens(tokens) == len(tokens):
                self.active = self._matcher.consume_tokens(tokens)
        self._tail = self._tail[-(len(FUNCTOOLS) - 1) :]

"""What the sampling of one row keeps from token to token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phi4mm.engine.constraint import Constraint
from phi4mm.errors import PromptError
from phi4mm.types import SamplingParams

MIN_TEMPERATURE = 1e-6  # lower ones are raised to this: float32 logits are hardly closer to each other


class RowSampler:
    """What a row's sampling keeps from token to token; made once for each row.

    Attributes:
        params: how to choose.
        token_ids: what was generated so far.
        temperature: what the logits are divided by, if ``params.temperature`` is not 0.
        top_k: ``params.top_k``, or 0 where that keeps the whole vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        *,
        vocab_size: int,
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Start a row.

        Args:
            params: how to choose.
            prompt_ids: the prompt's tokens, for the repetition penalty.
            vocab_size: of the logits.
            choice: index among ``params.n``: with a seed, each has its own random numbers, made from both.
            constraint: which tokens may come next.

        Raises:
            PromptError: a token id of its options is not in the vocabulary.
        """
        params.check_vocabulary(vocab_size)
        self.params = params
        self.token_ids: list[int] = []
        self.temperature = max(params.temperature, MIN_TEMPERATURE)
        self.top_k = params.top_k if params.top_k < vocab_size else 0
        self._constraint = constraint
        self._banned = frozenset(params.banned_tokens)
        self._counts: Counter[int] = Counter()
        self._counts_matter = bool(params.presence_penalty or params.frequency_penalty)
        repeats = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        touched = sorted(repeats | set(params.logit_bias) | self._banned)
        # Only these tokens' logits change: divided (or multiplied) by ``_penalties``, then shifted by ``_shifts``.
        self._places = {token_id: place for place, token_id in enumerate(touched)}
        self._touched = np.array(touched, np.int64)
        self._penalties = np.array([params.repetition_penalty if i in repeats else 1.0 for i in touched], np.float32)
        self._shifts = np.array([self._shift(token_id) for token_id in touched], np.float32)
        self._random = np.random.Generator(np.random.Philox(_entropy(params.seed, choice)))

    def push(self, token_id: int) -> None:
        """Append the token that was chosen."""
        self.token_ids.append(token_id)
        if self._constraint is not None:
            self._constraint.push(token_id)
        if not self._counts_matter and self.params.repetition_penalty == 1.0:
            return
        self._counts[token_id] += 1
        place = self._places.setdefault(token_id, len(self._touched))
        if place == len(self._touched):
            self._touched = np.append(self._touched, token_id)
            self._penalties = np.append(self._penalties, np.float32(1.0))
            self._shifts = np.append(self._shifts, np.float32(0.0))
        self._penalties[place] = self.params.repetition_penalty
        self._shifts[place] = self._shift(token_id)

    @property
    def changes_logits(self) -> bool:
        """Whether the next token is chosen from other logits than the model's."""
        return bool(len(self._touched) or self.params.processors or self.constraint)

    @property
    def constraint(self) -> Constraint | None:
        """Says which tokens may come next; ``None``: any."""
        return self._constraint if self._constraint is not None and self._constraint.active else None

    @property
    def is_filtered(self) -> bool:
        """Whether only some of the tokens may be drawn."""
        return bool(self.top_k or self.params.top_p < 1.0 or self.params.min_p)

    @property
    def needs_total(self) -> bool:
        """Whether a draw depends on the probabilities of the whole vocabulary."""
        return not self.is_filtered or (self.params.top_p < 1.0 and not self.top_k)

    def log_bound(self, total: float | None, vocab_size: int) -> float:
        """A natural log-probability, less that of the best token, under which no token is kept.

        Args:
            total: the sum of the probabilities of the vocabulary, where that of the best token is 1.
            vocab_size: of how many tokens.
        """
        bounds = [self.params.min_p]
        if total is not None:  # all tokens less probable than this have less than 1 - top_p together
            bounds.append((1.0 - self.params.top_p) * total / vocab_size)
        bound = 0.0 if self.top_k else max(bounds) / 2  # halved: rounding does not matter
        return math.log(bound) if bound else -math.inf

    def changes(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """The tokens whose logits change, the repetition penalty of each, and what is added to each."""
        return self._touched, self._penalties, self._shifts

    def process(self, logits: Tensor) -> Tensor:
        """Run the row's processors on its logits [vocabulary].

        Raises:
            PromptError: a processor returned something else than logits [vocabulary]; its own exceptions pass.
        """
        shape = logits.shape
        for processor in self.params.processors:
            logits = processor(tuple(self.token_ids), logits)
            if not isinstance(logits, Tensor) or logits.shape != shape:
                got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
                raise PromptError(f"processors: {processor!r:.80} returned {got}; expected logits [{shape[0]}]")
        return logits

    def uniform(self) -> float:
        """The row's next random number in [0, 1); one is taken for each token."""
        return self._random.random()

    def _shift(self, token_id: int) -> float:
        if token_id in self._banned:
            return -math.inf
        count = self._counts[token_id]
        penalty = self.params.presence_penalty * (count > 0) + self.params.frequency_penalty * count
        return self.params.logit_bias.get(token_id, 0.0) - penalty


def _entropy(seed: int | None, choice: int) -> np.random.SeedSequence:
    if seed is None:
        return np.random.SeedSequence()
    return np.random.SeedSequence(seed % 2**64, spawn_key=(choice,) if choice else ())

"""From a row's logits to its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen and when it ends.

    Attributes:
        max_new_tokens: the most tokens to generate, the stop token included.
        temperature: 0 for greedy decoding.
        top_p: nucleus (Holtzman et al. 2020): the smallest set of tokens whose probability exceeds this.
        top_k: the number of tokens kept; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen (Keskar et al. 2019).
        seed: of the row's own generator; ``None`` for a fresh one.
        stop_token_ids: tokens that end the row.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the highest score decides, as it comes from the model."""
        return self.temperature == 0.0 and self.repetition_penalty == 1.0

    def generator(self) -> torch.Generator:
        """A generator for one row, on the CPU, so that a seed gives the same tokens on any device."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True)
class Choice:
    """A token and its natural log-probability, at temperature 1 and without penalties."""

    token_id: int
    log_probability: float


def next_tokens(
    logits: Tensor,
    seen: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator],
) -> list[Choice]:
    """Choose a token for each row; all that the greedy ones need comes from the device in one go.

    Args:
        logits: [rows, vocabulary].
        seen, samplings, generators: of each row, as ``next_token``.
    """
    wide = logits.float()
    highest, best = wide.max(dim=-1)
    total = wide.logsumexp(dim=-1)
    # float32 holds whole numbers up to 2^24 exactly, so token ids may travel with the log-probabilities.
    token_ids, log_probabilities, totals = torch.stack((best.float(), highest - total, total)).tolist()
    choices = []
    for row, sampling in enumerate(samplings):
        if sampling.is_greedy:
            choices.append(Choice(int(token_ids[row]), log_probabilities[row]))
        else:
            token_id = next_token(logits[row], seen[row], sampling, generators[row])
            choices.append(Choice(token_id, float(logits[row, token_id]) - totals[row]))
    return choices


def next_token(logits: Tensor, seen: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Choose a token from one row's logits.

    Args:
        logits: [vocabulary].
        seen: the row's tokens so far, for the repetition penalty.
        sampling: how to choose.
        generator: the row's own.
    """
    if sampling.repetition_penalty != 1.0:
        logits = _penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    logits = logits.float().cpu() / sampling.temperature
    order = logits.argsort(descending=True)
    if sampling.top_k:
        order = order[: sampling.top_k]
    probabilities = logits[order].softmax(dim=-1)
    if sampling.top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = int((before < sampling.top_p).sum())
        order, probabilities = order[:kept], probabilities[:kept]
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _penalise(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    ids = torch.tensor(sorted(set(seen)), device=logits.device)
    chosen = logits[ids]
    return logits.index_put((ids,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))

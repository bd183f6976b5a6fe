"""A model for the engine's tests: its next token depends on every token, place, route and rope choice before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from phi4mm.engine.engine import Prompt
from phi4mm.engine.runner import Piece, Token
from phi4mm.engine.sampler import Sampling
from phi4mm.model.router import Route

VOCABULARY = 11
STOP = 0


def next_token(token_ids: Sequence[int], route: Route, long: bool) -> int:
    """What the mock model says after these tokens."""
    state = 17 + 31 * long + 7 * len(route.adapter or "")
    for token_id in token_ids:
        state = (state * 1103515245 + token_id + 12345) % 2**31
    return (state >> 8) % VOCABULARY


def alone(prompt: Prompt, original_max_positions: int, max_positions: int) -> list[int]:
    """The row's continuation, without engine or cache."""
    token_ids = list(prompt.token_ids)
    new: list[int] = []
    while len(new) < prompt.sampling.max_new_tokens and len(token_ids) < max_positions and STOP not in new:
        new.append(next_token(token_ids, prompt.route, len(token_ids) > original_max_positions))
        token_ids.append(new[-1])
    return new


def make_prompt(token_ids: Sequence[int], adapter: str | None, max_new_tokens: int) -> Prompt:
    embeddings = torch.tensor(token_ids, dtype=torch.float32)[:, None]
    return Prompt(token_ids, embeddings, Route(adapter), Sampling(max_new_tokens, stop_token_ids=(STOP,)))


class MockRunner:
    """Keeps tokens where the model keeps keys and values, and refuses what the model would get wrong."""

    def __init__(self, num_slots: int, *, original_max_positions: int = 10**6, max_positions: int = 10**6) -> None:
        self.num_slots = num_slots
        self.original_max_positions = original_max_positions
        self.max_positions = max_positions
        self.slots: list[list[tuple[int, bool]]] = [[] for _ in range(num_slots)]
        self.prefilled: list[int] = []
        self.decoded: list[int] = []
        self.num_moves = 0

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(token_ids, dtype=torch.float32)[:, None]

    def prefill(self, pieces: Sequence[Piece]) -> torch.Tensor:
        assert len({piece.slot for piece in pieces}) == len(pieces)
        self.prefilled.append(sum(len(piece.embeddings) for piece in pieces))
        logits = [
            self._write(piece.slot, piece.start, piece.embeddings[:, 0].int().tolist(), piece.route, piece.long)
            for piece in pieces
        ]
        return torch.stack([row for row, piece in zip(logits, pieces, strict=True) if piece.final] or [torch.empty(0)])

    def decode(self, tokens: Sequence[Token]) -> torch.Tensor:
        assert len({token.slot for token in tokens}) == len(tokens)
        self.decoded.append(len(tokens))
        return torch.stack(
            [self._write(token.slot, token.position, [token.token_id], token.route, token.long) for token in tokens]
        )

    def move(self, source: int, target: int, num_tokens: int) -> None:
        self.num_moves += 1
        self.slots[target] = self.slots[source][:num_tokens]
        self.slots[source] = []

    def _write(self, slot: int, start: int, token_ids: list[int], route: Route, long: bool) -> torch.Tensor:
        assert token_ids
        assert len(self.slots[slot]) >= start
        self.slots[slot][start:] = [(token_id, long) for token_id in token_ids]
        assert all(kept_long == long for _, kept_long in self.slots[slot]), "keys of both rope choices in one row"
        logits = torch.zeros(VOCABULARY)
        logits[next_token([token_id for token_id, _ in self.slots[slot]], route, long)] = 1.0
        return logits

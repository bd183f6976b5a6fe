"""The engine's two calculations, prefill and decode, over the model and its key/value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from phi4mm.engine.kv_cache import DecodeAttention, KeyValueCache, PrefillAttention, Stretch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Route


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt.

    Attributes:
        slot: of the row.
        start: position of its first token; the earlier ones have been run.
        embeddings: [tokens, hidden].
        route: of the row.
        long: whether the row takes the long rope factors.
        final: whether it ends the prompt, so that its last token's logits are wanted.
    """

    slot: int
    start: int
    embeddings: Tensor
    route: Route
    long: bool
    final: bool


@dataclass(frozen=True)
class Token:
    """The newest token of the row in ``slot``, which stands at ``position``; the earlier ones have been run."""

    slot: int
    token_id: int
    position: int
    route: Route
    long: bool


def prefill(model: Phi4MMModel, cache: KeyValueCache, pieces: Sequence[Piece]) -> Tensor:
    """Run pieces of prompts, and keep their keys and values.

    The pieces lie end to end, without padding; those of one route run together, with its adapter alone.

    Returns:
        The logits after each final piece, in order [final pieces, vocabulary].
    """
    logits: dict[int, Tensor] = {}

    def route_of(index: int) -> str:
        return pieces[index].route.adapter or ""

    for _, group in groupby(sorted(range(len(pieces)), key=route_of), key=route_of):
        indices = list(group)
        logits.update(zip(indices, _prefill([pieces[index] for index in indices], model, cache), strict=True))
    finals = [logits[index] for index, piece in enumerate(pieces) if piece.final]
    return torch.stack(finals) if finals else torch.empty(0)


def _prefill(pieces: Sequence[Piece], model: Phi4MMModel, cache: KeyValueCache) -> list[Tensor]:
    """The logits after each piece; an empty tensor for one that is not final."""
    device = model.device
    counts = torch.tensor([len(piece.embeddings) for piece in pieces], device=device)
    stretches = [Stretch(piece.slot, piece.start, len(piece.embeddings), piece.final) for piece in pieces]
    embeddings = torch.cat([piece.embeddings for piece in pieces])[:, None]
    positions = torch.cat([torch.arange(stretch.start, stretch.end, device=device) for stretch in stretches])
    finals = torch.tensor([piece.final for piece in pieces], device=device)
    any_final = any(piece.final for piece in pieces)
    hidden = model.decoder(
        embeddings,
        positions[:, None],
        torch.tensor([piece.long for piece in pieces], device=device).repeat_interleave(counts),
        gate=model.gate((pieces[0].route,)),
        cache=PrefillAttention(cache, stretches, embeddings),
        wanted=counts.cumsum(0)[finals] - 1 if any_final else None,
    )[:, 0]
    if not any_final:
        return [hidden.new_empty(0)] * len(pieces)
    logits = iter(model.decoder.logits(hidden))
    return [next(logits) if piece.final else hidden.new_empty(0) for piece in pieces]


def decode(model: Phi4MMModel, cache: KeyValueCache, tokens: Sequence[Token]) -> Tensor:
    """Run one token of each of some rows.

    Returns:
        The logits after each [rows, vocabulary].
    """
    device = model.device
    token_ids = torch.tensor([token.token_id for token in tokens], device=device)
    embeddings = model.decoder.embed_tokens(token_ids[:, None])
    attention = DecodeAttention(
        cache, [token.slot for token in tokens], [token.position for token in tokens], embeddings
    )
    hidden = model.decoder(
        embeddings,
        attention.positions[:, None],
        torch.tensor([token.long for token in tokens], device=device),
        gate=model.gate(tuple(token.route for token in tokens)),
        cache=attention,
    )
    return model.decoder.logits(hidden[:, 0])


class ModelRunner:
    """The model as the engine sees it: see ``Runner`` in engine.py.

    Args:
        model: in evaluation mode.
        num_slots: the most rows at a time.
        cache: with so many slots or more, where it outlives the runner.
    """

    def __init__(self, model: Phi4MMModel, num_slots: int, cache: KeyValueCache | None = None) -> None:
        self.model = model
        self.num_slots = num_slots
        self.max_positions = model.config.decoder.max_positions
        self.original_max_positions = model.config.decoder.original_max_positions
        if cache is None:
            cache = KeyValueCache(model.config.decoder, num_slots, device=model.device, dtype=model.dtype)
        self.cache = cache

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        return self.model.decoder.embed_tokens(torch.tensor(token_ids, dtype=torch.long, device=self.model.device))

    def prefill(self, pieces: Sequence[Piece]) -> Tensor:
        return prefill(self.model, self.cache, pieces)

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        return decode(self.model, self.cache, tokens)

    def move(self, source: int, target: int, num_tokens: int) -> None:
        self.cache.move(source, target, num_tokens)

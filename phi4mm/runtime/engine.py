"""Prefill and decode. The engine knows tokens and positions, nothing of text or media."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from phi4mm.model.backbone import visible_keys
from phi4mm.model.batch import Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Route
from phi4mm.runtime.cache import DecodeView, KeyValueCache, PrefillView
from phi4mm.runtime.sampling import Sampling, next_token


@dataclass
class RowState:
    """One row while it is being decoded.

    Attributes:
        index: the row's place in the batch that was handed in.
        prompt: the prompt's embeddings [tokens, hidden], kept for the row's second prefill (see ``_crosses``).
        token_ids: prompt and generated tokens.
        num_new: how many of those were generated.
        finish_reason: ``None`` while the row goes on.
    """

    index: int
    prompt: Tensor
    route: Route
    sampling: Sampling
    token_ids: list[int]
    num_new: int = 0
    finish_reason: str | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


@dataclass(frozen=True)
class Step:
    """One generated token: the row's place in the batch, the token, and why the row ended, if it did."""

    row: int
    token_id: int
    finish_reason: str | None


def prefill(
    model: Phi4MMModel,
    embeddings: Tensor,
    lengths: Tensor,
    routes: tuple[Route, ...],
    cache: KeyValueCache,
    slots: Tensor,
) -> Tensor:
    """Run whole prompts and keep their keys and values.

    Args:
        embeddings: [rows, tokens, hidden], padded at the end.
        lengths: valid tokens of each row [rows].
        routes: one per row.
        cache, slots: where each row's keys and values go.

    Returns:
        The scores after each row's last token [rows, vocabulary].
    """
    num_rows, num_tokens, _ = embeddings.shape
    cache.reserve(num_tokens)
    positions = torch.arange(num_tokens, device=embeddings.device).expand(num_rows, -1)
    hidden = model.backbone(
        embeddings,
        positions,
        model.long_rows(lengths),
        gate=model.gate(routes),
        cache=PrefillView(cache, slots),
    )
    last = hidden[torch.arange(num_rows, device=hidden.device), lengths - 1]
    return model.backbone.logits(last)


def decode(
    model: Phi4MMModel, token_ids: Tensor, positions: Tensor, routes: tuple[Route, ...], cache: KeyValueCache
) -> Tensor:
    """Run one token of every slot.

    Args:
        token_ids, positions: of each row's newest token [rows].
        routes: one per row.
        cache: one slot per row, in the same order.

    Returns:
        The scores after it [rows, vocabulary].
    """
    length = int(positions.max()) + 1
    cache.reserve(length)
    hidden = model.backbone(
        model.backbone.embed_tokens(token_ids[:, None]),
        positions[:, None],
        model.long_rows(positions + 1),
        gate=model.gate(routes),
        cache=DecodeView(cache, positions, length),
        mask=visible_keys(positions[:, None], length, model.config.backbone.sliding_window),
    )
    return model.backbone.logits(hidden[:, 0])


class Generation:
    """The decoding of one batch: iterate it for a ``Step`` per generated token, in the order in which they come.

    Args:
        model: in evaluation mode.
        batch: the rows.
        samplings: one per row.
    """

    def __init__(self, model: Phi4MMModel, batch: Batch, samplings: Sequence[Sampling]) -> None:
        self._model = model
        self._batch = batch.to(model.device)
        self._samplings = tuple(samplings)
        self._rows: list[RowState] = []

    def stop(self, row: int) -> None:
        """End a row from outside (a stop string was found); the others go on."""
        for state in self._rows:
            if state.index == row:
                state.finish_reason = "stop"

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Step]:
        model, batch = self._model, self._batch
        embeddings = model.embed(batch)
        lengths = batch.lengths.tolist()
        self._rows = [
            RowState(
                index=index,
                prompt=embeddings[index, :length],
                route=batch.routes[index],
                sampling=sampling,
                token_ids=batch.token_ids[index, :length].tolist(),
                generator=sampling.generator(),
            )
            for index, (length, sampling) in enumerate(zip(lengths, self._samplings, strict=True))
        ]
        cache = KeyValueCache(model.config.backbone, len(self._rows), device=model.device, dtype=model.dtype)
        slots = torch.arange(len(self._rows), device=model.device)
        scores = prefill(model, embeddings, batch.lengths, batch.routes, cache, slots)
        del embeddings
        while True:
            for state, row_scores in zip(self._rows, scores, strict=True):
                yield self._advance(state, row_scores)
            going = [slot for slot, state in enumerate(self._rows) if state.finish_reason is None]
            if not going:
                return
            if len(going) < len(self._rows):
                self._rows = [self._rows[slot] for slot in going]
                cache.keep(going)
            scores = self._step(cache)

    def _advance(self, state: RowState, scores: Tensor) -> Step:
        sampling = state.sampling
        token_id = next_token(scores, state.token_ids, sampling, state.generator)
        state.token_ids.append(token_id)
        state.num_new += 1
        if token_id in sampling.stop_token_ids:
            state.finish_reason = "stop"
        elif (
            state.num_new >= sampling.max_new_tokens
            or len(state.token_ids) >= self._model.config.backbone.max_positions
        ):
            state.finish_reason = "length"
        return Step(state.index, token_id, state.finish_reason)

    def _step(self, cache: KeyValueCache) -> Tensor:
        """Scores after every row's newest token [rows, vocabulary]."""
        model, device = self._model, self._model.device
        token_ids = torch.tensor([state.token_ids[-1] for state in self._rows], device=device)
        positions = torch.tensor([len(state.token_ids) - 1 for state in self._rows], device=device)
        routes = tuple(state.route for state in self._rows)
        scores = decode(model, token_ids, positions, routes, cache)
        for slot, state in enumerate(self._rows):
            if self._crosses(state):
                scores[slot] = self._prefill_again(state, cache, slot)
        return scores

    def _crosses(self, state: RowState) -> bool:
        """Whether the newest token takes the row over the range of the short rope factors."""
        return state.num_new > 0 and len(state.token_ids) == self._model.config.backbone.original_max_positions + 1

    def _prefill_again(self, state: RowState, cache: KeyValueCache, slot: int) -> Tensor:
        """With the long factors every key of the row changes: run it from its start, and only this row."""
        model = self._model
        new = torch.tensor(state.token_ids[-state.num_new :], device=model.device)
        embeddings = torch.cat((state.prompt, model.backbone.embed_tokens(new)))[None]
        lengths = torch.tensor([embeddings.shape[1]], device=model.device)
        slots = torch.tensor([slot], device=model.device)
        return prefill(model, embeddings, lengths, (state.route,), cache, slots)[0]

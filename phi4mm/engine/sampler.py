"""From logits to the next tokens, of all rows at once and on the logits' device.

What comes back from the device, in one transfer, is little for each row: its best token, the token drawn, or the most
probable candidates; filtering and drawing these is arithmetic in float64, row by row. Only where 256 candidates do not
cover what a filter keeps, the row's logits are copied whole. No sum is split differently with the number of rows or
threads, so on the CPU a row's choice is the same, bit for bit, alone and in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from phi4mm.engine.row_sampler import RowSampler
from phi4mm.errors import Phi4MMError, PromptError
from phi4mm.types import MAX_LOGPROBS

BLOCK = 64  # tokens whose maximum and sum are taken together
CANDIDATES = 256  # of each filtered row that come back from the device; where they do not do, the whole row does
# Rows computed at once on a CPU: the allocator keeps memory of this size, and clears larger anew.
CPU_ROWS = 4


@dataclass(frozen=True)
class Choice:
    """A token, its natural log-probability, and the most probable tokens with theirs, the most probable first, if
    ``SamplingParams.logprobs`` asks for them; all at temperature 1 and without penalties or bias."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@torch.no_grad()
def choose(logits: Tensor, rows: Sequence[RowSampler]) -> list[Choice | Exception]:
    """Choose a token for each row.

    In this order, as OpenAI and vLLM do: repetition penalty (of the prompt's and the generated tokens), presence and
    frequency penalty (of the generated ones), bias, banned tokens, the row's processors, its grammar; then the highest
    logit (temperature 0), or: divide by the temperature, keep ``top_k``, of these ``top_p``, of these ``min_p``, draw.
    Of equal logits the lower token id comes first, also at the edges of ``top_k`` and ``top_p``.

    Args:
        logits: [rows, vocabulary], of any floating dtype; they are not changed.
        rows: the sampler of each row. Each sampled one takes a random number; nothing is pushed to them.

    Returns:
        For each row its choice, or the exception of one of its processors, or a ``Phi4MMError`` where its logits are
        NaN or infinite or leave no token to choose.
    """
    if not rows:
        return []
    wide = _Logits.of(logits.float())
    highest, best = wide.best()
    # The highest probability gives the logarithm of the sum; unlike logsumexp, softmax computes each row by itself.
    log_total = highest - wide.values.softmax(dim=-1).gather(1, best[:, None])[:, 0].log()

    errors: dict[int, Exception] = {}
    changed = [index for index, row in enumerate(rows) if row.changes_logits]
    sampled = {index for index, row in enumerate(rows) if row.params.temperature > 0.0}
    unchanged = sorted(sampled.difference(changed))
    draws = [_Draw.of(wide, best, dict(zip(unchanged, unchanged, strict=True)), rows)] if unchanged else []
    top_logit, token = highest, best
    if changed:
        where = _tensor(changed, logits)
        values, errors = _edited(wide.values.index_select(0, where), changed, rows)
        edited = _Logits.of(values)
        edited_highest, edited_best = edited.best()
        if places := {index: place for place, index in enumerate(changed) if index in sampled}:
            draws.append(_Draw.of(edited, edited_best, places, rows))
        top_logit, token = highest.index_copy(0, where, edited_highest), best.index_copy(0, where, edited_best)
    shown = [index for index, row in enumerate(rows) if row.params.logprobs]
    always = [log_total, top_logit, token, wide.values.gather(1, token[:, None])[:, 0]]
    most_probable = wide.select(shown).candidates(MAX_LOGPROBS) if shown else ()
    fetched = _fetch([always, most_probable, *(draw.tensors(wide) for draw in draws)])

    log_totals, top_logits, token_ids, own_logits = fetched[0]
    for index in range(len(rows)):
        if index not in errors and not math.isfinite(log_totals[index]):
            errors[index] = Phi4MMError("the model's logits are NaN or infinite; check its weights and its dtype")
        elif index not in errors and not math.isfinite(top_logits[index]):
            errors[index] = Phi4MMError(
                "no token is left to choose, or a logit became NaN or infinite; "
                "check banned_tokens, logit_bias and processors, and with an output format stop_token_ids"
            )
    for draw, arrays in zip(draws, fetched[2:], strict=True):
        for index, token_id, own_logit in draw.finish(wide, top_logits, arrays, errors):
            token_ids[index], own_logits[index] = token_id, own_logit
    choices = [Choice(int(i), float(logit)) for i, logit in zip(token_ids, own_logits - log_totals, strict=True)]
    if shown:
        for index, values, ids in zip(shown, *_ranked(*fetched[1]), strict=True):
            pairs = [(int(i), float(v - log_totals[index])) for i, v in zip(ids, values, strict=True) if v > -math.inf]
            choices[index] = replace(choices[index], top=tuple(pairs[: rows[index].params.logprobs]))
    return [errors.get(index, choice) for index, choice in enumerate(choices)]


@dataclass(frozen=True)
class _Logits:
    """Logits [rows, vocabulary], the same in blocks, [rows, blocks, BLOCK], filled up with -inf, and the highest of
    each block: the highest of a row lie in the blocks with the highest maxima, so only these are looked through."""

    values: Tensor
    blocks: Tensor
    maxima: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Logits:
        blocks = _blocks(values, -math.inf)
        return cls(values, blocks, blocks.amax(dim=-1))

    def select(self, places: Sequence[int]) -> _Logits:
        """Rows; itself where these are all, in order."""
        if list(places) == list(range(len(self.values))):
            return self
        where = _tensor(places, self.values)
        return _Logits(*(tensor.index_select(0, where) for tensor in (self.values, self.blocks, self.maxima)))

    def best(self) -> tuple[Tensor, Tensor]:
        """The highest logit of each row and the first token that has it, [rows] each."""
        block = self.maxima.argmax(dim=-1)
        highest, place = _block_of(self.blocks, block).max(dim=-1)
        return highest, block * BLOCK + place

    def candidates(self, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` highest logits of each row, in any order, and their token ids, [rows, count] each."""
        kept = self.maxima.topk(min(count, self.maxima.shape[1]), dim=-1, sorted=False).indices
        values = self.blocks.gather(1, kept[..., None].expand(-1, -1, BLOCK)).flatten(1)
        found = values.topk(min(count, values.shape[1]), dim=-1, sorted=False)
        return found.values, kept.gather(1, found.indices // BLOCK) * BLOCK + found.indices % BLOCK


@dataclass(frozen=True)
class _Draw:
    """The sampled rows among those that choose from one tensor of logits.

    Attributes:
        rows: the sampler of each, by its index among all rows of the step.
        uniforms: the random number of each.
        logits: what they choose from.
        best: the token of each that has the highest logit.
    """

    rows: Mapping[int, RowSampler]
    uniforms: Sequence[float]
    logits: _Logits
    best: Tensor

    @classmethod
    def of(cls, logits: _Logits, best: Tensor, places: Mapping[int, int], rows: Sequence[RowSampler]) -> _Draw:
        """Row ``index`` of the step chooses from row ``places[index]`` of ``logits``, where ``best`` is the highest."""
        where = list(places.values())
        chosen = {index: rows[index] for index in places}
        uniforms = [row.uniform() for row in chosen.values()]
        return cls(chosen, uniforms, logits.select(where), best.index_select(0, _tensor(where, best)))

    def tensors(self, wide: _Logits) -> Sequence[Tensor]:
        """What the choice needs from the device; ``wide`` are the unchanged logits of the step.

        Returns:
            For each row, or empty where no row needs it: the highest probability, the token drawn without a filter
            and its unchanged logit [n]; the candidates' logits, token ids and unchanged logits [n, candidates].
        """
        samplers = self.rows.values()
        values = self.logits.values
        peak = drawn = drawn_logits = found = ids = found_logits = values.new_empty(0)
        where, last = _tensor(list(self.rows), values), values.shape[1] - 1
        if any(row.needs_total for row in samplers):
            draws = not all(row.is_filtered for row in samplers)
            temperatures = [row.temperature for row in samplers]
            dividers = torch.tensor(temperatures, dtype=torch.float32, device=values.device)
            uniforms = torch.tensor(self.uniforms, dtype=torch.float64, device=values.device)
            at_once = CPU_ROWS if values.device.type == "cpu" else len(self.rows)
            parts = []
            for some, divider, best, uniform in zip(
                *(tensor.split(at_once) for tensor in (values, dividers, self.best, uniforms)), strict=True
            ):
                probabilities = (some / divider[:, None]).softmax(dim=-1)
                token = _drawn(_blocks(probabilities, 0.0), uniform) if draws else best
                parts.append((probabilities.gather(1, best[:, None])[:, 0], token))
            peak, drawn = (torch.cat(part) for part in zip(*parts, strict=True))
            drawn_logits = wide.values[where, drawn]
        if any(row.is_filtered for row in samplers):
            found, ids = self.logits.candidates(CANDIDATES)
            found_logits = wide.values[where[:, None], ids.clamp(max=last)]  # ids over the last are the filling's
        return peak, drawn, drawn_logits, found, ids, found_logits

    def finish(
        self, wide: _Logits, highest: NDArray[np.float64], arrays: Sequence[NDArray[Any]], failed: Container[int]
    ) -> Iterator[tuple[int, int, float]]:
        """For each row that has not failed its index, its token and that one's unchanged logit.

        Args:
            wide: as for ``tensors``.
            highest: the highest logit of each row of the step.
            arrays: the values of ``tensors``.
            failed: indices of rows to pass over.
        """
        peak, drawn, drawn_logits, found, found_ids, found_logits = arrays
        ranked, ranked_ids = _ranked(found, found_ids)
        for n, (index, row) in enumerate(self.rows.items()):
            if index in failed:
                continue
            if not row.is_filtered:
                yield index, int(drawn[n]), float(drawn_logits[n])
                continue
            total = 1.0 / float(peak[n]) if row.needs_total else None
            # Others may be equal to the last candidate, and with lower ids.
            place = _pick(ranked[n], ranked[n, -1], row, total, self.uniforms[n])
            if place is not None:
                token_id = ranked_ids[n, place]
                yield index, int(token_id), float(found_logits[n, found_ids[n] == token_id].item())
                continue
            everything = self.logits.values[n].cpu().numpy()
            for edge in (highest[index] + row.temperature * row.log_bound(total, len(everything)), -math.inf):
                ids = np.flatnonzero(everything > edge)
                values, ids = _ranked(everything[ids], ids)
                place = _pick(values, edge, row, total, self.uniforms[n])
                if place is not None:
                    yield index, int(ids[place]), float(wide.values[index, int(ids[place])])
                    break


def _pick(logits: NDArray[np.float32], edge: float, row: RowSampler, total: float | None, uniform: float) -> int | None:
    """Filter and draw.

    Args:
        logits: the highest logits of a row, the highest first.
        edge: the row's tokens with higher logits than this are all there.
        row: whose temperature and filters apply.
        total: the sum of the probabilities of the vocabulary, where that of the best token is 1.
        uniform: a random number in [0, 1).

    Returns:
        The place in ``logits`` of the token drawn, or ``None`` where that takes more of the vocabulary.
    """
    kept_logits = logits[: np.count_nonzero(logits > edge)].astype(np.float64)
    is_all = edge == -math.inf
    if row.top_k:
        if row.top_k > len(kept_logits) and not is_all:
            return None
        kept_logits, total, is_all = kept_logits[: row.top_k], None, True
    weights = np.exp((kept_logits - logits[0]) / row.temperature)
    sums = weights.cumsum()
    kept = len(weights) if is_all else len(weights) + 1  # one more: not all that are kept are here
    if row.params.top_p < 1.0:
        kept = min(kept, int(sums.searchsorted(row.params.top_p * (sums[-1] if total is None else total))) + 1)
    probable = int(np.count_nonzero(weights >= row.params.min_p))
    if probable < len(weights):
        kept = min(kept, probable)
    if kept > len(weights):
        return None
    return int(sums[:kept].searchsorted(uniform * sums[kept - 1], side="right"))


def _ranked(values: NDArray[np.floating[Any]], ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Float32 values and their token ids along the last dimension, the highest first, of equals the lower id first."""
    # Whole numbers that are ordered as the values are, made one key with the ids: one fast sort, without ties.
    bits = (values.astype(np.float32) + np.float32(0.0)).view(np.int32)  # + 0.0: there is no -0.0
    ascending = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)
    keys = np.sort((~ascending << 32) | ids.astype(np.int64))
    ascending = (~(keys >> 32)).astype(np.int32)
    return np.where(ascending < 0, ascending ^ 0x7FFFFFFF, ascending).view(np.float32), keys & 0xFFFFFFFF


def _edited(logits: Tensor, indices: Sequence[int], rows: Sequence[RowSampler]) -> tuple[Tensor, dict[int, Exception]]:
    """Change logits [len(indices), vocabulary] in place as the rows of these indices ask.

    Returns:
        The logits, and the exceptions of processors by the index of their row.
    """
    touched, penalties, shifts = zip(*(rows[index].changes() for index in indices), strict=True)
    where = np.stack((np.repeat(np.arange(len(indices)), [len(ids) for ids in touched]), np.concatenate(touched)))
    place, token_id = torch.from_numpy(where).to(logits.device)
    penalty, shift = torch.from_numpy(np.stack((np.concatenate(penalties), np.concatenate(shifts)))).to(logits.device)
    before = logits[place, token_id]
    logits[place, token_id] = torch.where(before > 0, before / penalty, before * penalty) + shift
    errors: dict[int, Exception] = {}
    masks: dict[int, NDArray[np.uint8]] = {}
    for number, index in enumerate(indices):
        constraint = rows[index].constraint
        if constraint is not None:
            try:
                masks[number] = constraint.mask()
            except Phi4MMError as error:
                errors[index] = error
                continue
        if rows[index].params.processors:
            try:
                logits[number] = rows[index].process(logits[number])
            except Exception as error:  # of the user's function, for the caller to hand to the row's owner
                errors[index] = error
            except BaseException as error:  # SystemExit and the like must not end the engine's thread
                errors[index] = PromptError(f"processors: one of them raised {type(error).__name__}")
                errors[index].__cause__ = error
    if masks:
        masked = _tensor(list(masks), logits)
        bits = torch.from_numpy(np.stack(list(masks.values()))).to(logits.device)
        powers = torch.arange(8, dtype=torch.uint8, device=logits.device)
        allowed = ((bits[..., None] >> powers) & 1).flatten(1)[:, : logits.shape[1]].bool()
        logits[masked] = logits[masked].masked_fill(~allowed, -math.inf)
    return logits, errors


def _drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [rows] drawn from probabilities [rows, blocks, BLOCK] with random numbers [rows], by their inverse
    cumulative distribution: first the block, then the token in it."""
    sums = probabilities.sum(dim=-1)
    upto = sums.double().cumsum(dim=-1)
    goal = uniforms * upto[:, -1]
    block = (upto <= goal[:, None]).sum(dim=-1)
    below, size = F.pad(upto, (1, 0)).gather(1, block[:, None]), sums.gather(1, block[:, None])
    inner = _block_of(probabilities, block).double().cumsum(dim=-1)
    place = (inner <= (goal[:, None] - below) / size * inner[:, -1:]).sum(dim=-1)
    last = (inner < inner[:, -1:]).sum(dim=-1)  # with any probability: rounding must not draw one without
    return block * BLOCK + torch.minimum(place, last)


def _blocks(tensor: Tensor, filling: float) -> Tensor:
    """[rows, vocabulary] as [rows, blocks, BLOCK], filled up."""
    missing = -tensor.shape[1] % BLOCK
    return (F.pad(tensor, (0, missing), value=filling) if missing else tensor).unflatten(1, (-1, BLOCK))


def _block_of(blocks: Tensor, places: Tensor) -> Tensor:
    """One block of each row: [rows, blocks, BLOCK] and [rows] to [rows, BLOCK]."""
    return blocks.gather(1, places[:, None, None].expand(-1, 1, BLOCK))[:, 0]


def _tensor(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def _fetch(groups: Sequence[Sequence[Tensor]]) -> list[list[NDArray[Any]]]:
    """The values of groups of tensors, copied from the device in one go: float64, or int64 where they were that."""
    tensors = [tensor for group in groups for tensor in group]
    # float64 holds float32 and token ids exactly.
    flat = torch.cat([tensor.flatten().double() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    arrays = iter(
        part.reshape(tensor.shape).astype(np.float64 if tensor.is_floating_point() else np.int64)
        for part, tensor in zip(np.split(flat, ends), tensors, strict=True)
    )
    return [[next(arrays) for _ in group] for group in groups]

"""Attention over the KV cache: of chunks of prompts, and of one token in each of many rows of any lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.engine.kv_cache import Extent, KVCache
from phi4mm.engine.varlen import VarlenAttention, has_varlen, varlen
from phi4mm.model.decoder import CachedAttention, visible_keys

_SMALL = 1 << 16  # bytes of a row's keys up to which copying several rows together is cheaper than a call for each
_ALIKE = 0.6  # the least share of the longest chunk's length in a padded call


class _Stretch(Protocol):
    """What is needed of a chunk of a prompt (``runner.Chunk``)."""

    @property
    def extent(self) -> Extent: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def final(self) -> bool: ...


@dataclass(frozen=True)
class _Part:
    """Rows whose keys are read in one call.

    Attributes:
        rows: which, in the batch.
        first: where the first one's extent begins.
        capacity: of each one's extent.
        slots: of each row, how many extents after the first; ``None`` where they are neighbours.
        begin, end: the keys that are read, counted within the extents.
        mask: additive [rows, 1, 1, end - begin]; ``None`` where every row sees all.
    """

    rows: slice
    first: int
    capacity: int
    slots: Tensor | None
    begin: int
    end: int
    mask: Tensor | None

    def read(self, kept: Tensor) -> Tensor:
        """[key/value heads, tokens, head] -> [rows, key/value heads, end - begin, head]; a view where it can be."""
        heads, _, size = kept.shape
        stride_head, stride_token, stride_size = kept.stride()
        count = self.rows.stop - self.rows.start
        if self.slots is not None:
            count = (kept.shape[1] - self.first) // self.capacity
        rows = kept.as_strided(
            (count, heads, self.end - self.begin, size),
            (self.capacity * stride_token, stride_head, stride_token, stride_size),
            kept.storage_offset() + (self.first + self.begin) * stride_token,
        )
        return rows if self.slots is None else rows[self.slots]


class LastTokens:
    """One query in each of some rows, which sees the row's keys up to its own position.

    On a GPU in half precision that is one call (``varlen``). Elsewhere rows whose extents are of one size and lie side
    by side are read in one call, with a mask over the ends of the shorter ones; if they lie apart, small ones are
    copied together, and large ones have a call each.

    Args:
        cache: holds the keys and values, those of the queries' own tokens included.
        extents, positions: of each row; best in the order of size and place of their extents.
        like: a tensor of the model's device and dtype.
    """

    def __init__(self, cache: KVCache, extents: Sequence[Extent], positions: Sequence[int], like: Tensor) -> None:
        self.cache = cache
        self.parts: list[_Part] = []
        self.varlen: VarlenAttention | None = None
        if extents and has_varlen(cache):
            starts, used = [extent.start for extent in extents], [position + 1 for position in positions]
            self.varlen = varlen([1] * len(extents), starts, used, like.device)
            return
        spec, _ = cache.attention(0)
        window, row_bytes = spec.window, spec.token_bytes(like.dtype) // 2
        for capacity, group in groupby(range(len(extents)), key=lambda row: extents[row].capacity):
            rows = list(group)
            for run in _runs(rows, extents, capacity, together=capacity * row_bytes <= _SMALL):
                self.parts.append(_part(run, extents, positions, capacity, window, like))

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """[rows, heads, 1, head] -> the same shape."""
        _, kept = self.cache.attention(layer)
        keys, values = kept.keys, kept.values
        if self.varlen is not None:
            return self.varlen.attend(keys, values, query[:, :, 0])[:, :, None]
        # The heads that share a key see the same past: as tokens of one head they need no copy of the keys.
        grouped = query.view(query.shape[0], keys.shape[0], -1, query.shape[3])
        attended = [
            F.scaled_dot_product_attention(grouped[part.rows], part.read(keys), part.read(values), attn_mask=part.mask)
            for part in self.parts
        ]
        return (attended[0] if len(attended) == 1 else torch.cat(attended)).reshape(query.shape)


def _runs(rows: list[int], extents: Sequence[Extent], capacity: int, *, together: bool) -> list[list[int]]:
    """Rows with extents of one size in groups that are read in one call: side by side in the cache, or, ``together``,
    all whose distance is a multiple of that size."""
    runs: list[list[int]] = []
    for row in rows:
        last = runs[-1][-1] if runs else None
        distance = None if last is None else extents[row].start - extents[last].start
        if distance == capacity or (together and distance is not None and distance > 0 and distance % capacity == 0):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _part(
    run: list[int],
    extents: Sequence[Extent],
    positions: Sequence[int],
    capacity: int,
    window: int | None,
    like: Tensor,
) -> _Part:
    first, last = extents[run[0]].start, extents[run[-1]].start
    slots = None
    if last - first != (len(run) - 1) * capacity:
        slots = torch.tensor([(extents[row].start - first) // capacity for row in run], device=like.device)
    own = [positions[row] for row in run]
    end = max(own) + 1
    begin = 0 if window is None else max(min(own) + 1 - window, 0)
    mask = None
    if min(own) + 1 < end or (window is not None and end - begin > window):
        places = torch.tensor(own, device=like.device) - begin
        mask = additive(visible_keys(places[:, None], end - begin, window), like)
    return _Part(slice(run[0], run[-1] + 1), first, capacity, slots, begin, end, mask)


class PaddedAttention:
    """Attention of the first tokens alone, where others at the end only fill up their number.

    Args:
        attention: of the first tokens.
        num_tokens: how many they are.
        num_padding: how many follow.
    """

    def __init__(self, attention: CachedAttention, num_tokens: int, num_padding: int) -> None:
        self._attention, self._num_tokens, self._num_padding = attention, num_tokens, num_padding

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """As the attention of the first tokens; zeros for the others."""
        own_keys, own_values = keys[: self._num_tokens], values[: self._num_tokens]
        if len(query) != len(keys):  # only those are asked for whose results are wanted
            return self._attention.attend(layer, query, own_keys, own_values)
        attended = self._attention.attend(layer, query[: self._num_tokens], own_keys, own_values)
        return F.pad(attended, (0, 0, 0, 0, 0, 0, 0, self._num_padding))


class DecodeAttention:
    """Attention of one token a row, each up to its own position in its own extent; its key and value are kept first.

    Args:
        cache: holds the earlier tokens, and is given these.
        extents, positions: of each row's token.
        like: a tensor of the model's device and dtype.
    """

    def __init__(self, cache: KVCache, extents: Sequence[Extent], positions: Sequence[int], like: Tensor) -> None:
        self.cache = cache
        self.positions = torch.tensor(positions, device=like.device)
        self.places = self.positions + torch.tensor([extent.start for extent in extents], device=like.device)
        self.last = LastTokens(cache, extents, positions, like)

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[rows, heads, 1, head], keys and values with their own number of heads -> the shape of ``query``."""
        _keep(self.cache, layer, self.places, keys, values)
        return self.last.attend(layer, query)


class PrefillAttention:
    """Attention of chunks of several rows, laid end to end: each token sees its own row up to its own position.

    No matrix of logits is kept. On a GPU in half precision all chunks are one call (``varlen``). Elsewhere chunks that
    start their rows use the causal kernel, those of like length padded into one call; a later one has a mask of [its
    tokens, tokens so far], which is linear in the row's length because chunks are of bounded length.

    Args:
        cache: holds the earlier tokens of each row, and is given these.
        chunks: in the order in which their tokens lie.
        like: a tensor of the model's device and dtype.
    """

    def __init__(self, cache: KVCache, chunks: Sequence[_Stretch], like: Tensor) -> None:
        self.cache = cache
        device = like.device
        ranges = [torch.arange(chunk.start, chunk.end) for chunk in chunks]
        self.positions = torch.cat(ranges).to(device)
        self.places = torch.cat([chunk.extent.start + range_ for chunk, range_ in zip(chunks, ranges, strict=True)]).to(
            device
        )
        finals = [chunk for chunk in chunks if chunk.final]
        self.last = LastTokens(cache, [chunk.extent for chunk in finals], [chunk.end - 1 for chunk in finals], like)
        self.varlen: VarlenAttention | None = None
        self.calls: list[_Padded | _Masked] = []
        if has_varlen(cache):
            counts = [chunk.end - chunk.start for chunk in chunks]
            starts, ends = [chunk.extent.start for chunk in chunks], [chunk.end for chunk in chunks]
            self.varlen = varlen(counts, starts, ends, device)
            return
        window = cache.attention(0)[0].window
        offsets = torch.tensor([0, *(chunk.end - chunk.start for chunk in chunks)]).cumsum(0).tolist()
        causal = {
            index for index, chunk in enumerate(chunks) if not chunk.start and (window is None or chunk.end <= window)
        }
        for group, longest in _alike([(index, chunks[index].end) for index in causal]):
            self.calls.append(_Padded([(offsets[index], chunks[index].end) for index in group], longest, device))
        for index, chunk in enumerate(chunks):
            if index not in causal:
                positions = torch.arange(chunk.start, chunk.end, device=device)
                mask = additive(visible_keys(positions[None], chunk.end, window)[0, 0], like)
                tokens = slice(offsets[index], offsets[index + 1])
                self.calls.append(_Masked(tokens, chunk.extent.start, chunk.end, mask))

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[tokens, heads, 1, head], keys and values with their own number of heads -> the shape of ``query``, which
        holds every token, or only the last one of each final chunk."""
        _keep(self.cache, layer, self.places, keys, values)
        if len(query) != len(keys):
            return self.last.attend(layer, query) if len(query) else query
        _, kept = self.cache.attention(layer)
        if self.varlen is not None:
            return self.varlen.attend(kept.keys, kept.values, query[:, :, 0])[:, :, None]
        output = torch.empty_like(query)
        for call in self.calls:
            call.attend(kept.keys, kept.values, query, keys, values, output)
        return output


class _Padded:
    """Chunks that start their rows, padded to one length at their ends, which no token before sees.

    Args:
        spans: where each one's tokens begin, and how many they are.
        longest: what they are padded to.
        device: of the tensors.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], longest: int, device: torch.device) -> None:
        self.tokens: Tensor | None = None  # [chunks, longest]
        self.span = slice(spans[0][0], spans[0][0] + spans[0][1])
        if len(spans) > 1:
            places = torch.arange(longest)
            counts = torch.tensor([count for _, count in spans])[:, None]
            starts = torch.tensor([start for start, _ in spans])[:, None]
            self.tokens = (starts + places.minimum(counts - 1)).to(device)
            used = places < counts
            self.filled = used.flatten().nonzero()[:, 0].to(device)
            self.targets = (starts + places)[used].to(device)

    def attend(
        self, kept_keys: Tensor, kept_values: Tensor, query: Tensor, keys: Tensor, values: Tensor, output: Tensor
    ) -> None:
        if self.tokens is None:
            own_query, own_keys, own_values = (_heads_first(states[self.span]) for states in (query, keys, values))
            output[self.span, :, 0] = _attend_one_row(own_query, own_keys, own_values, None).transpose(0, 1)
            return
        batch_query, batch_keys, batch_values = (
            states[:, :, 0][self.tokens].transpose(1, 2) for states in (query, keys, values)
        )
        shared = query.shape[1] // keys.shape[1]
        attended = F.scaled_dot_product_attention(
            batch_query,
            batch_keys.repeat_interleave(shared, dim=1),
            batch_values.repeat_interleave(shared, dim=1),
            is_causal=True,
        )
        output[self.targets, :, 0] = attended.transpose(1, 2).flatten(0, 1)[self.filled]


@dataclass(frozen=True)
class _Masked:
    """A chunk that goes on in its row: its tokens, where the row begins in the cache and ends, and what each sees."""

    tokens: slice
    start: int
    end: int
    mask: Tensor

    def attend(
        self, kept_keys: Tensor, kept_values: Tensor, query: Tensor, keys: Tensor, values: Tensor, output: Tensor
    ) -> None:
        past = slice(self.start, self.start + self.end)
        attended = _attend_one_row(
            _heads_first(query[self.tokens]), kept_keys[:, past], kept_values[:, past], self.mask
        )
        output[self.tokens, :, 0] = attended.transpose(0, 1)


def _alike(lengths: Sequence[tuple[int, int]]) -> list[tuple[list[int], int]]:
    """Indices with their lengths in groups of similar length, and the longest of each group."""
    groups: list[tuple[list[int], int]] = []
    for index, length in sorted(lengths, key=lambda pair: -pair[1]):
        if groups and length >= _ALIKE * groups[-1][1]:
            groups[-1][0].append(index)
        else:
            groups.append(([index], length))
    return groups


def _attend_one_row(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """[heads, tokens, head], keys and values with their own number of heads; causally where there is no mask."""
    # Heads that share a key are given views of it: with ``enable_gqa`` CUDA has no fused kernel under a mask.
    grouped = query.unflatten(0, (keys.shape[0], -1))
    keys, values = (states[:, None].expand(-1, grouped.shape[1], -1, -1) for states in (keys, values))
    attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, is_causal=mask is None)
    return attended.flatten(0, 1)


def _keep(cache: KVCache, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write [tokens, key/value heads, 1, head] to their places."""
    _, kept = cache.attention(layer)
    kept.keys.index_copy_(1, places, keys[:, :, 0].transpose(0, 1))
    kept.values.index_copy_(1, places, values[:, :, 0].transpose(0, 1))


def _heads_first(states: Tensor) -> Tensor:
    """[tokens, heads, 1, head] -> [heads, tokens, head]."""
    return states.squeeze(2).transpose(0, 1)


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where a key is seen and minus infinity elsewhere, computed once for all layers."""
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, float("-inf"))

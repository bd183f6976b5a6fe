"""The key/value cache: one slot a row, and how attention reads and writes it in prefill and in decode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.model.config import DecoderConfig
from phi4mm.model.decoder import visible_keys

_LEAST_CAPACITY = 256  # tokens; from there slots double, so that a long row is copied a few times at most


def power_of_two(number: int) -> int:
    """The least power of two that is at least ``number``."""
    return 1 << (number - 1).bit_length()


def capacity_for(num_tokens: int) -> int:
    """The capacity to make room for ``num_tokens`` with."""
    return max(_LEAST_CAPACITY, power_of_two(num_tokens))


class KeyValueCache:
    """Keys and values of every layer, [slots, key/value heads, capacity, head] each, written in place.

    A slot is a row's from its first token to its last; what another row left behind in it is never attended to.

    Args:
        config: the decoder's sizes.
        num_slots: rows that are decoded together.
        device, dtype: of the model.
    """

    def __init__(self, config: DecoderConfig, num_slots: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        shape = (num_slots, config.num_kv_heads, 0, config.head_size)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return self.keys[0].shape[2]

    def reserve(self, num_tokens: int) -> None:
        """Make every slot hold at least ``num_tokens``."""
        if num_tokens <= self.capacity:
            return
        capacity = capacity_for(num_tokens)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = _zeros((*old.shape[:2], capacity, old.shape[3]), old)
                tensors[layer][:, :, : old.shape[2]] = old

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` of one slot to another."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :, :num_tokens] = tensor[source, :, :num_tokens]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of one row: ``num_tokens`` from position ``start`` on, in ``slot``; ``final`` where they end
    its prompt."""

    slot: int
    start: int
    num_tokens: int
    final: bool

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class PrefillAttention:
    """Attention of stretches of several rows, laid end to end: each sees its own slot up to each token's position.

    No score matrix is kept: a stretch that starts its row uses the causal kernel; a later one has a mask of
    [its tokens, tokens so far], which is linear in the row's length because stretches are of bounded length.

    Args:
        cache: holds the earlier tokens of each row, and is given these.
        stretches: in the order in which their tokens lie.
        like: a tensor of the model's device and dtype.
    """

    def __init__(self, cache: KeyValueCache, stretches: Sequence[Stretch], like: Tensor) -> None:
        cache.reserve(max(stretch.end for stretch in stretches))
        self.cache = cache
        self.stretches = tuple(stretches)
        self.masks = [self._mask(stretch, like) for stretch in stretches]

    def _mask(self, stretch: Stretch, like: Tensor) -> Tensor | None:
        window = self.cache.config.sliding_window
        if not stretch.start and (window is None or stretch.end <= window):
            return None
        positions = torch.arange(stretch.start, stretch.end, device=like.device)
        return additive(visible_keys(positions[None], stretch.end, window)[0, 0], like)

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[tokens, heads, 1, head], keys and values with their own number of heads -> the shape of ``query``, which
        holds every token, or only the last one of each final stretch."""
        kept_keys, kept_values = self.cache.keys[layer], self.cache.values[layer]
        counts = [stretch.num_tokens for stretch in self.stretches]
        wanted = counts if len(query) == len(keys) else [int(stretch.final) for stretch in self.stretches]
        attended = []
        for stretch, mask, some_query, some_keys, some_values in zip(
            self.stretches,
            self.masks,
            _heads_first(query).split(wanted, dim=1),
            _heads_first(keys).split(counts, dim=1),
            _heads_first(values).split(counts, dim=1),
            strict=True,
        ):
            slot, end, num_queries = stretch.slot, stretch.end, some_query.shape[1]
            kept_keys[slot, :, stretch.start : end] = some_keys
            kept_values[slot, :, stretch.start : end] = some_values
            if not num_queries:
                continue
            # Heads that share a key are given views of it: with ``enable_gqa`` CUDA has no fused kernel under a mask.
            grouped = some_query.unflatten(0, (some_keys.shape[0], -1))
            some_keys, some_values = (
                kept[slot, :, None, :end].expand(-1, grouped.shape[1], -1, -1) for kept in (kept_keys, kept_values)
            )
            attended.append(
                F.scaled_dot_product_attention(
                    grouped,
                    some_keys,
                    some_values,
                    attn_mask=None if mask is None else mask[-num_queries:],
                    is_causal=mask is None and num_queries == end,  # the last token alone sees all
                ).flatten(0, 1)
            )
        return torch.cat(attended, dim=1).transpose(0, 1).unsqueeze(2)


class DecodeAttention:
    """Attention of one token a row, each up to its own position in its own slot.

    Rows of similar length in neighbouring slots are attended to in one call, with a mask over the ends of the shorter
    ones; otherwise row by row, so that a long row makes no work for short ones.

    Args:
        cache: holds the earlier tokens, and is given these.
        slots: of the rows.
        positions: of each row's token.
        like: a tensor of the model's device and dtype.
    """

    def __init__(self, cache: KeyValueCache, slots: Sequence[int], positions: Sequence[int], like: Tensor) -> None:
        cache.reserve(max(positions) + 1)
        self.cache = cache
        self.slots = torch.tensor(slots, device=like.device)
        self.positions = torch.tensor(positions, device=like.device)
        num_rows, end, window = len(slots), max(positions) + 1, cache.config.sliding_window
        self.parts: list[tuple[slice, slice, slice]] = []  # rows, their slots, their keys
        self.mask: Tensor | None = None
        if list(slots) == list(range(num_rows)) and end <= max(2 * min(positions), _LEAST_CAPACITY):
            self.parts.append((slice(0, num_rows), slice(0, num_rows), slice(0, end)))
            self.mask = additive(visible_keys(self.positions[:, None], end, window), like)
        else:
            for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
                first = 0 if window is None else max(position + 1 - window, 0)
                self.parts.append((slice(row, row + 1), slice(slot, slot + 1), slice(first, position + 1)))

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[rows, heads, 1, head], keys and values with their own number of heads -> the shape of ``query``."""
        kept_keys, kept_values = self.cache.keys[layer], self.cache.values[layer]
        kept_keys[self.slots, :, self.positions] = keys[:, :, 0]
        kept_values[self.slots, :, self.positions] = values[:, :, 0]
        # The heads that share a key see the same past: as tokens of one head they need no copy of the keys.
        grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[3])
        attended = [
            F.scaled_dot_product_attention(
                grouped[rows], kept_keys[slots, :, span], kept_values[slots, :, span], attn_mask=self.mask
            )
            for rows, slots, span in self.parts
        ]
        return (attended[0] if len(attended) == 1 else torch.cat(attended)).reshape(query.shape)


def _heads_first(states: Tensor) -> Tensor:
    """[tokens, heads, 1, head] -> [heads, tokens, head]."""
    return states.squeeze(2).transpose(0, 1)


def additive(visible: Tensor, like: Tensor) -> Tensor:
    """0 where a key is seen and minus infinity elsewhere, computed once for all layers."""
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, float("-inf"))


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros, because 0 times what memory happens to hold may be NaN. On the CPU they take memory once written to: a
    long row then costs its own length, not that of every slot."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(like.dtype).view(shape)

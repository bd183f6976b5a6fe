"""The KV cache: one arena of tokens for all rows, in which each row has an extent of about its own length."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from phi4mm.model.cache import KeyValueCache, KeyValueSpec, LayerSpec

BLOCK = 64  # tokens; extents are whole blocks
_ALIGNED = 8  # blocks up to which an extent is a power of two, and lies at a multiple of its size


@dataclass(frozen=True, order=True)
class Extent:
    """Neighbouring places in the arena: ``capacity`` tokens from ``start`` on."""

    start: int
    capacity: int


def capacity_for(num_tokens: int, least: int = BLOCK) -> int:
    """The tokens of the extent that a row of ``num_tokens`` gets: ``least``, or at most a quarter more than it needs
    beyond 512, so that rows of similar length have extents of one size, which attention can read in one call."""
    blocks = max(-(-max(num_tokens, least) // BLOCK), 1)
    size = 1 << (blocks - 1).bit_length()
    if blocks > _ALIGNED:
        step = 1 << (blocks.bit_length() - 3)
        size = -(-blocks // step) * step
    return size * BLOCK


class Arena:
    """Which places of the cache are free. Places are given out from the lowest one on.

    Args:
        num_tokens: the bound; rounded down to whole blocks.
        least: tokens of the smallest extent.

    Attributes:
        num_tokens: how many it holds.
        num_used: how many are in extents.
    """

    def __init__(self, num_tokens: int, least: int = BLOCK) -> None:
        self.num_tokens = num_tokens // BLOCK * BLOCK
        self._least = least
        self.num_used = 0
        self._free: list[tuple[int, int]] = [(0, self.num_tokens)] if self.num_tokens else []  # start, end; sorted

    def allocate(self, num_tokens: int) -> Extent | None:
        """An extent for so many tokens; ``None`` where no free place is large enough."""
        capacity = min(capacity_for(num_tokens, self._least), max(self.num_tokens, BLOCK))
        if capacity < num_tokens:
            return None
        align = capacity if capacity <= _ALIGNED * BLOCK else BLOCK
        for index, (start, end) in enumerate(self._free):
            place = -(-start // align) * align
            if place + capacity <= end:
                self._free[index : index + 1] = [
                    part for part in ((start, place), (place + capacity, end)) if part[0] < part[1]
                ]
                self.num_used += capacity
                return Extent(place, capacity)
        return None

    def extend(self, extent: Extent, num_tokens: int) -> Extent | None:
        """The extent made larger where it lies; ``None`` where what follows it is not free."""
        end, capacity = extent.start + extent.capacity, min(capacity_for(num_tokens, self._least), self.num_tokens)
        new_end = extent.start + capacity
        for index, (free_start, free_end) in enumerate(self._free):
            if free_start == end and new_end <= free_end:
                self._free[index : index + 1] = [(new_end, free_end)] if new_end < free_end else []
                self.num_used += capacity - extent.capacity
                return Extent(extent.start, capacity)
        return None

    def shrink(self, extent: Extent, num_tokens: int) -> Extent:
        """The extent without the places after ``num_tokens``."""
        capacity = -(-num_tokens // BLOCK) * BLOCK
        if capacity >= extent.capacity:
            return extent
        self.release(Extent(extent.start + capacity, extent.capacity - capacity))
        return Extent(extent.start, capacity)

    def release(self, extent: Extent) -> None:
        """Give an extent back."""
        start, end = extent.start, extent.start + extent.capacity
        touching = [part for part in self._free if part[1] == start or part[0] == end]
        for part in touching:
            self._free.remove(part)
            start, end = min(start, part[0]), max(end, part[1])
        insort(self._free, (start, end))
        self.num_used -= extent.capacity


class KVCache:
    """The memory of all layers for the places of the arena.

    Args:
        specs: what each layer keeps of a row.
        num_tokens: of all rows together.
        device, dtype: of the model.

    Attributes:
        layers: each layer's own cache.
        is_divisible: whether rows can share a beginning.
    """

    def __init__(
        self, specs: Sequence[LayerSpec], num_tokens: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.specs = tuple(specs)
        self.num_tokens = num_tokens
        self.layers = [spec.make_cache(num_tokens, device=device, dtype=dtype) for spec in specs]
        self.is_divisible = all(layer.is_divisible for layer in self.layers)

    def attention(self, layer: int) -> tuple[KeyValueSpec, KeyValueCache]:
        """What an attention layer keeps, and its keys and values."""
        spec, cache = self.specs[layer], self.layers[layer]
        assert isinstance(spec, KeyValueSpec)
        assert isinstance(cache, KeyValueCache)
        return spec, cache

    @staticmethod
    def token_bytes(specs: Sequence[LayerSpec], dtype: torch.dtype) -> int:
        """Bytes that a token takes in all layers."""
        return sum(spec.token_bytes(dtype) for spec in specs)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy what is kept of a row of ``num_tokens`` from the extent at ``source`` to that at ``target``."""
        for layer in self.layers:
            layer.copy(source, target, num_tokens)

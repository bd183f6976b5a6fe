"""The key/value cache: one slot a row, each at its own position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi4mm.model.config import BackboneConfig

_GROWTH = 128  # slots are lengthened by this many tokens at a time, so that copies are rare


class KeyValueCache:
    """Keys and values of every layer, [rows, key/value heads, capacity, head] each.

    Args:
        config: the decoder's sizes.
        num_rows: slots.
        device, dtype: of the model.
    """

    def __init__(self, config: BackboneConfig, num_rows: int, *, device: torch.device, dtype: torch.dtype) -> None:
        shape = (num_rows, config.num_kv_heads, 0, config.head_size)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]

    @property
    def capacity(self) -> int:
        """Tokens that a slot holds."""
        return self.keys[0].shape[2]

    def reserve(self, num_tokens: int) -> None:
        """Make every slot hold at least ``num_tokens``."""
        if num_tokens <= self.capacity:
            return
        capacity = -(-num_tokens // _GROWTH) * _GROWTH
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                tensors[layer][:, :, : old.shape[2]] = old

    def keep(self, slots: Sequence[int]) -> None:
        """Drop every other slot; the kept ones are numbered anew in the order given."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old[list(slots)]


@dataclass(frozen=True)
class PrefillView:
    """Writes the first tokens of some slots; they attend to themselves alone."""

    cache: KeyValueCache
    slots: Tensor

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.cache.keys[layer][self.slots, :, : keys.shape[2]] = keys
        self.cache.values[layer][self.slots, :, : values.shape[2]] = values
        return keys, values


@dataclass(frozen=True)
class DecodeView:
    """Writes one token of every slot at its ``positions`` [rows]; each attends to the first ``length`` of its slot."""

    cache: KeyValueCache
    positions: Tensor
    length: int

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slots = torch.arange(len(self.positions), device=self.positions.device)
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        all_keys[slots, :, self.positions] = keys[:, :, 0]
        all_values[slots, :, self.positions] = values[:, :, 0]
        return all_keys[:, :, : self.length], all_values[:, :, : self.length]

"""What the layers of a decoder keep of rows between steps: each layer makes its own cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class LayerCache(Protocol):
    """What one layer keeps of all rows. A row has an extent of places, one for each of its tokens; a layer that keeps a
    state of a row instead of its tokens has it at the extent's first place."""

    @property
    def is_divisible(self) -> bool:
        """Whether what is kept of a row's first tokens is there beside that of all: keys and values are, a recurrent
        state is not. Otherwise rows cannot share a beginning."""
        ...

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy what is kept of a row of ``num_tokens`` from the extent at ``source`` to that at ``target``."""
        ...


class LayerSpec(Protocol):
    """What one layer keeps of a row, before there is memory for it."""

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Memory of one token."""
        ...

    def make_cache(self, num_tokens: int, *, device: torch.device, dtype: torch.dtype) -> LayerCache:
        """Memory for so many tokens of all rows together."""
        ...


@dataclass(frozen=True)
class KeyValueSpec:
    """What an attention layer keeps of a row: keys and values of its tokens.

    Attributes:
        num_kv_heads: key/value heads.
        head_size: of each.
        window: how many tokens back a token sees, itself included; ``None`` for all.
    """

    num_kv_heads: int
    head_size: int
    window: int | None

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Memory of one token."""
        return 2 * self.num_kv_heads * self.head_size * dtype.itemsize

    def make_cache(self, num_tokens: int, *, device: torch.device, dtype: torch.dtype) -> KeyValueCache:
        """Memory for so many tokens of all rows together."""
        shape = (self.num_kv_heads, num_tokens, self.head_size)
        return KeyValueCache(_zeros(shape, device, dtype), _zeros(shape, device, dtype))


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of one layer, each [key/value heads, tokens, head], written in place."""

    keys: Tensor
    values: Tensor

    @property
    def is_divisible(self) -> bool:
        """Those of a row's first tokens are there beside all."""
        return True

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy ``num_tokens`` from the places at ``source`` to those at ``target``, which do not overlap."""
        for tensor in (self.keys, self.values):
            tensor[:, target : target + num_tokens] = tensor[:, source : source + num_tokens]


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, because 0 times what memory happens to hold may be NaN. On the CPU they take memory once written to."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)

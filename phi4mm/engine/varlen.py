"""Attention of ragged rows in one call of FlashAttention-2 (Dao 2023, arXiv 2307.08691), which reads keys and values
where they lie in the arena: on a GPU, in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.engine.kv_cache import KVCache

_AMPERE = 8  # the least compute capability that the kernel runs on


def has_varlen(cache: KVCache) -> bool:
    """Whether the kernel can read this cache: on a GPU of at least Ampere's kind, in half precision, and where no
    window hides a part of a row."""
    spec, kept = cache.attention(0)
    keys = kept.keys
    if keys.device.type != "cuda" or keys.dtype not in (torch.bfloat16, torch.float16):
        return False
    if spec.window is not None and spec.window < cache.num_tokens:
        return False
    return spec.head_size % 8 == 0 and torch.cuda.get_device_capability(keys.device)[0] >= _AMPERE


class VarlenAttention(NamedTuple):
    """Where the queries and the keys of each row lie.

    Attributes:
        queries: where each row's queries begin, and the last row's end, int32 [rows + 1].
        starts: where each row's keys begin in the arena, int32 [rows + 1]; the last is not read.
        used: how many keys each row has, int32 [rows]. The last query of a row sees all of them, each one before it
            one less.
        most_queries, most_keys: of a row, or more.
    """

    queries: Tensor
    starts: Tensor
    used: Tensor
    most_queries: int
    most_keys: int

    def attend(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Keys and values [key/value heads, places, head], queries [queries, heads, head] -> the shape of ``query``."""
        output: Tensor = torch.ops.aten._flash_attention_forward(
            query,
            keys.transpose(0, 1),
            values.transpose(0, 1),
            self.queries,
            self.starts,
            self.most_queries,
            self.most_keys,
            0.0,  # dropout
            self.most_queries > 1,  # causal
            False,
            seqused_k=self.used,
        )[0]
        return output


def varlen(counts: Sequence[int], starts: Sequence[int], used: Sequence[int], device: torch.device) -> VarlenAttention:
    """Attention of rows with ``counts`` queries each, whose ``used`` keys begin at ``starts`` in the arena."""
    queries = F.pad(torch.tensor(counts).cumsum(0), (1, 0))
    packed = torch.cat([queries, torch.tensor([*starts, 0, *used])]).int().to(device)
    rows = len(counts)
    return VarlenAttention(
        packed[: rows + 1],
        packed[rows + 1 : 2 * rows + 2],
        packed[2 * rows + 2 :],
        max(counts),
        max(used),
    )

"""LoRALinear: a frozen weight with every adapter's low-rank update beside it, gated for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.config import AdapterConfig
from phi4mm.model.router import Route


@dataclass(frozen=True)
class Gate:
    """How much each stacked rank counts in each row.

    Attributes:
        span: the slice of the stacked ranks that any row of the batch uses.
        weights: alpha / rank of each row's adapter over that adapter's ranks and zero elsewhere, [rows, 1, ranks];
            [1, 1, 1] where every row has the same adapter.
    """

    span: slice
    weights: Tensor


def adapter_spans(adapters: Sequence[AdapterConfig]) -> dict[str, slice]:
    """Where each adapter's ranks lie in the stacked matrices."""
    spans: dict[str, slice] = {}
    start = 0
    for adapter in adapters:
        spans[adapter.name] = slice(start, start + adapter.rank)
        start += adapter.rank
    return spans


def make_gate(
    adapters: Sequence[AdapterConfig], routes: Sequence[Route], *, device: torch.device, dtype: torch.dtype
) -> Gate | None:
    """The gate of a batch, or ``None`` where no row has an adapter (the decoder then runs alone, bit for bit)."""
    by_name = {adapter.name: adapter for adapter in adapters}
    spans = adapter_spans(adapters)
    chosen = [route.adapter for route in routes]
    used = {name for name in chosen if name is not None}
    if not used:
        return None
    if len(used) == 1 and None not in chosen:
        only = used.pop()
        return Gate(spans[only], torch.full((1, 1, 1), by_name[only].scale, device=device, dtype=dtype))
    first = min(spans[name].start for name in used)
    last = max(spans[name].stop for name in used)
    weights = torch.zeros(len(routes), 1, last - first)
    for row, name in enumerate(chosen):
        if name is not None:
            weights[row, 0, spans[name].start - first : spans[name].stop - first] = by_name[name].scale
    return Gate(slice(first, last), weights.to(device=device, dtype=dtype))


class LoRALinear(nn.Module):
    """``y = W x + ((x A^T) * gate) B^T`` (LoRA, Hu et al. 2021, with the adapters' A and B stacked).

    Args:
        in_size, out_size: of the frozen weight.
        total_rank: the sum of the adapters' ranks.
    """

    def __init__(self, in_size: int, out_size: int, total_rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        self.lora_a = nn.Parameter(torch.empty(total_rank, in_size))
        self.lora_b = nn.Parameter(torch.zeros(out_size, total_rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W as in GPT-2 (normal, 0.02), A as in LoRA (Kaiming uniform), B zero: a new adapter changes nothing."""
        nn.init.normal_(self.weight, std=0.02)
        if self.lora_a.numel():
            nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)
        nn.init.zeros_(self.lora_b)

    def frozen(self, hidden: Tensor) -> Tensor:
        """W x: what a row without an adapter gets."""
        return F.linear(hidden, self.weight)

    def forward(self, hidden: Tensor, gate: Gate | None) -> Tensor:
        """[rows, tokens, in_size] -> [rows, tokens, out_size]."""
        output = self.frozen(hidden)
        if gate is None:
            return output
        low_rank = F.linear(hidden, self.lora_a[gate.span]) * gate.weights
        return output + F.linear(low_rank, self.lora_b[:, gate.span])

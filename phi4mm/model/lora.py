"""LoRALinear: a frozen weight, the LoRA adapters attached to it, and which rows of a batch take which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.config import AdapterConfig

_RESERVED = frozenset(dir(nn.ModuleDict()))  # names that a ModuleDict does not take as keys


@dataclass(frozen=True)
class AdapterUse:
    """One adapter of a batch, and the rows that take it.

    Attributes:
        name: of the adapter.
        rows: ``None`` for every row, a slice of consecutive rows, or their indices, int64 [rows of the adapter].
        weight: 0 or 1 for each row [rows, 1, 1], which the update is multiplied with: where ``rows`` must not depend on
            the batch, as in a compiled step, every row is computed, and those without the adapter get zero.
    """

    name: str
    rows: slice | Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class RowAdapters:
    """The adapters that a batch uses. Those of a row are summed in the order of ``uses``."""

    uses: tuple[AdapterUse, ...]

    @property
    def only(self) -> str | None:
        """The adapter that every row takes and none beside it, if there is one."""
        if len(self.uses) != 1 or self.uses[0].rows is not None or self.uses[0].weight is not None:
            return None
        return self.uses[0].name


def row_adapters(
    names: Sequence[tuple[str, ...]], counts: Sequence[int] | None = None, *, device: torch.device | str
) -> RowAdapters | None:
    """Which adapters a batch uses, in which rows.

    They are sorted by name, so that the sum of a row does not depend on what runs beside it.

    Args:
        names: the adapters of each entry.
        counts: how many consecutive rows of the batch each entry stands for; one each by default.
        device: of the row indices.

    Returns:
        ``None`` where no row has an adapter: the decoder then runs alone, bit for bit.
    """
    ends = list(accumulate([1] * len(names) if counts is None else counts))
    starts = [0, *ends[:-1]]
    uses = []
    for name in sorted({name for entry in names for name in entry}):
        ranges: list[range] = []
        for entry, start, end in zip(names, starts, ends, strict=True):
            if name not in entry or start == end:
                continue
            if ranges and ranges[-1].stop == start:
                start = ranges.pop().start
            ranges.append(range(start, end))
        if len(ranges) > 1:
            indices = [row for rows in ranges for row in rows]
            uses.append(AdapterUse(name, torch.tensor(indices, device=device)))
        elif ranges:
            (rows,) = ranges
            uses.append(AdapterUse(name, None if len(rows) == ends[-1] else slice(rows.start, rows.stop)))
    return RowAdapters(tuple(uses)) if uses else None


def module_key(name: str) -> str:
    """The key of the adapter ``name`` in a ``ModuleDict``: the name itself, unless torch does not allow it."""
    return f"%{name}" if name in _RESERVED else name.replace("%", "%25").replace(".", "%2E")


def adapter_name(key: str) -> str:
    """The inverse of ``module_key``."""
    return key[1:] if key[0] == "%" and key[1:] in _RESERVED else key.replace("%2E", ".").replace("%25", "%")


class LoRA(nn.Module):
    """One adapter of one linear: ``scale * (x A^T) B^T`` (LoRA, Hu et al. 2021).

    In training, dropout is applied to ``x``, as peft does.

    Args:
        a: [rank, in_size].
        b: [out_size, rank].
        scale: LoRA scaling, alpha / rank.
        dropout: probability.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.scale = scale
        self.dropout = dropout

    @classmethod
    def initial(cls, in_size: int, out_size: int, config: AdapterConfig) -> LoRA:
        """A as in the paper's code (Kaiming uniform), B zero: a new adapter changes nothing."""
        lora = cls(torch.empty(config.rank, in_size), torch.zeros(out_size, config.rank), config.scale, config.dropout)
        nn.init.kaiming_uniform_(lora.a, a=5**0.5)
        return lora

    def extra_repr(self) -> str:
        return f"rank={self.a.shape[0]}, scale={self.scale:g}, dropout={self.dropout:g}"

    def add_to(self, output: Tensor, hidden: Tensor, use: AdapterUse) -> None:
        """Add the update of the rows that take this adapter, in place.

        Args:
            output: [rows, tokens, out_size].
            hidden: [rows, tokens, in_size].
            use: which rows.
        """
        rows = use.rows
        some = hidden if rows is None else hidden[rows]
        if self.training and self.dropout:
            some = F.dropout(some, self.dropout)
        low_rank = F.linear(some, self.a)
        if isinstance(rows, Tensor):
            output.index_add_(0, rows, F.linear(low_rank, self.b), alpha=self.scale)
            return
        if use.weight is not None:
            low_rank = low_rank * use.weight
        target = output if rows is None else output[rows]
        if low_rank.dtype == output.dtype == self.b.dtype:
            target.flatten(0, 1).addmm_(low_rank.flatten(0, 1), self.b.t(), alpha=self.scale)
        else:  # under autocast, which an operation in place is not part of
            target.add_(F.linear(low_rank, self.b), alpha=self.scale)

    def delta(self) -> Tensor:
        """What the adapter adds to the frozen weight: scale * B A, [out_size, in_size] in float32."""
        return self.scale * (self.b.float() @ self.a.float())


class LoRALinear(nn.Module):
    """``y = W x + sum over the row's adapters of scale * (x A^T) B^T``.

    A batch costs the adapters that it uses, however many are attached, and each only in the rows that take it.

    Args:
        in_size, out_size: of the frozen weight.
    """

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.in_size, self.out_size = in_size, out_size
        self.weight = nn.Parameter(torch.empty(out_size, in_size))
        nn.init.normal_(self.weight, std=0.02)  # as in GPT-2
        self.lora = nn.ModuleDict()

    def adapter(self, name: str) -> LoRA:
        """The adapter ``name`` of this linear."""
        lora: LoRA = self.lora._modules[module_key(name)]  # type: ignore[assignment]
        return lora

    def attach(self, name: str, lora: LoRA) -> None:
        self.lora[module_key(name)] = lora

    def detach(self, name: str) -> None:
        del self.lora[module_key(name)]

    def frozen(self, hidden: Tensor) -> Tensor:
        """W x: what a row without an adapter gets."""
        return F.linear(hidden, self.weight)

    def forward(self, hidden: Tensor, adapters: RowAdapters | None) -> Tensor:
        """[rows, tokens, in_size] -> [rows, tokens, out_size]."""
        output = self.frozen(hidden)
        if adapters is None:
            return output
        for use in adapters.uses:
            # In place, which autograd allows here: the gradient of a product does not need the product.
            self.adapter(use.name).add_to(output, hidden, use)
        return output


def lora_linears(module: nn.Module) -> dict[str, LoRALinear]:
    """The ``LoRALinear`` modules in ``module``, by name. What wraps one (engine/merge.py) calls it ``linear``."""
    return {
        name.removesuffix(".linear"): linear
        for name, linear in module.named_modules()
        if isinstance(linear, LoRALinear)
    }

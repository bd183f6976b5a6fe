"""Merging one adapter into a copy of the decoder's weights, for a run of rows that all take it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phi4mm.engine.prepack import PrepackedLinear, prepacked, product
from phi4mm.engine.swap import swap_linears
from phi4mm.errors import Phi4MMError
from phi4mm.model.lora import LoRALinear, RowAdapters
from phi4mm.model.phi4mm import Phi4MMModel


class MergedLinear(nn.Module):
    """W' = W + scale * B A beside the frozen linear, for batches whose rows all take that adapter and no other. Any
    other batch goes to the frozen linear and its adapters.

    Args:
        linear: the frozen weight with its adapters; kept, not copied.
        adapter: the name of the one to merge.
    """

    def __init__(self, linear: LoRALinear, adapter: str) -> None:
        super().__init__()
        self.linear = linear
        self.adapter = adapter
        weight = linear.plain() if isinstance(linear, PrepackedLinear) else linear.weight
        merged = (weight.float() + linear.adapter(adapter).delta()).to(weight.dtype)
        self.register_buffer("merged", prepacked(merged) if isinstance(linear, PrepackedLinear) else merged)

    merged: Tensor

    def forward(self, hidden: Tensor, adapters: RowAdapters | None) -> Tensor:
        """[rows, tokens, in_size] -> [rows, tokens, out_size]."""
        if adapters is not None and adapters.only == self.adapter:
            return product(hidden, self.merged)
        return self.linear(hidden, adapters)


@torch.no_grad()
def merge(model: Phi4MMModel, adapter: str) -> Phi4MMModel:
    """Merge ``adapter`` into a copy of the weights, in place of what was merged before.

    Batches whose rows all take the adapter then cost what the bare decoder costs; all others are computed as before.
    It takes the memory of the decoder's linears once more. The sum is rounded to the weights' precision, so logits
    differ from those of the unmerged model by that rounding.

    Raises:
        Phi4MMError: there is no such adapter, or the linears are quantised.
    """
    if adapter not in model.adapters:
        known = ", ".join(repr(name) for name in model.adapters) or "none"
        raise Phi4MMError(f"merge={adapter!r} is not an adapter of this model, which has {known}; pass one of these")
    unmerge(model)
    kinds = (LoRALinear, PrepackedLinear)
    if not any(type(module) in kinds for module in model.decoder.modules()):
        raise Phi4MMError(f"merge={adapter!r} needs weights that are not quantised; pass quantize=None")

    def make(_: str, linear: nn.Module) -> nn.Module:
        assert isinstance(linear, LoRALinear)
        return MergedLinear(linear, adapter).eval()

    for kind in kinds:
        swap_linears(model, kind, make)
    model.merged = adapter
    return model


def unmerge(model: Phi4MMModel) -> Phi4MMModel:
    """Drop the merged copy; the frozen weights are the very tensors that they were."""

    def make(_: str, merged: nn.Module) -> nn.Module:
        assert isinstance(merged, MergedLinear)
        return merged.linear

    model.merged = None
    return swap_linears(model, MergedLinear, make)

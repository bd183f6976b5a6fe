"""Merging one adapter into a copy of the decoder's weights, for a run of rows that all take it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phi4mm.engine.prepack import PrepackedLinear, prepacked, product
from phi4mm.engine.swap import swap_linears
from phi4mm.errors import Phi4MMError
from phi4mm.model.lora import Gate, LoRALinear, adapter_spans
from phi4mm.model.phi4mm import Phi4MMModel


class MergedLinear(nn.Module):
    """W' = W + (alpha / rank) B A beside the frozen linear. Calls of any other route go to the frozen one.

    Args:
        linear: the frozen weight with its adapters; kept, not copied.
        span: the adapter's ranks.
        scale: alpha / rank.
    """

    def __init__(self, linear: LoRALinear, span: slice, scale: float) -> None:
        super().__init__()
        self.linear = linear
        self.span = span
        weight = linear.plain() if isinstance(linear, PrepackedLinear) else linear.weight
        update = linear.lora_b[:, span].float() @ linear.lora_a[span].float()
        merged = (weight.float() + scale * update).to(weight.dtype)
        self.register_buffer("merged", prepacked(merged) if isinstance(linear, PrepackedLinear) else merged)

    merged: Tensor

    def forward(self, hidden: Tensor, gate: Gate | None) -> Tensor:
        """[rows, tokens, in_size] -> [rows, tokens, out_size]."""
        if gate is not None and gate.span == self.span and len(gate.weights) == 1:
            return product(hidden, self.merged)
        return self.linear(hidden, gate)


@torch.no_grad()
def merge(model: Phi4MMModel, adapter: str) -> Phi4MMModel:
    """Merge ``adapter`` into a copy of the weights, in place of what was merged before.

    Batches whose rows all take the adapter then cost what the bare decoder costs; all others are computed as before.
    It takes the memory of the decoder's linears once more. The sum is rounded to the weights' precision, so logits
    differ from those of the unmerged model by that rounding.

    Raises:
        Phi4MMError: there is no such adapter, or the linears are quantised.
    """
    by_name = {config.name: config for config in model.config.adapters}
    if adapter not in by_name:
        known = ", ".join(repr(name) for name in by_name) or "none"
        raise Phi4MMError(f"merge={adapter!r} is not an adapter of this model, which has {known}; pass one of these")
    unmerge(model)
    kinds = (LoRALinear, PrepackedLinear)
    if not any(type(module) in kinds for module in model.decoder.modules()):
        raise Phi4MMError(f"merge={adapter!r} needs weights that are not quantised; pass quantize=None")
    span, scale = adapter_spans(model.config.adapters)[adapter], by_name[adapter].scale

    def make(_: str, linear: nn.Module) -> nn.Module:
        assert isinstance(linear, LoRALinear)
        return MergedLinear(linear, span, scale).eval()

    for kind in kinds:
        swap_linears(model, kind, make)
    return model


def unmerge(model: Phi4MMModel) -> Phi4MMModel:
    """Drop the merged copy; the frozen weights are the very tensors that they were."""

    def make(_: str, merged: nn.Module) -> nn.Module:
        assert isinstance(merged, MergedLinear)
        return merged.linear

    return swap_linears(model, MergedLinear, make)

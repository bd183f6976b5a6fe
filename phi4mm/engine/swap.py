"""Exchanging the decoder's linears from outside the model."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from phi4mm.model.phi4mm import Phi4MMModel


def swap_linears(model: Phi4MMModel, kind: type[nn.Module], make: Callable[[str, nn.Module], nn.Module]) -> Phi4MMModel:
    """Put ``make(name, linear)`` in the place of each of the decoder's linears of exactly this ``kind``, one by one."""
    for name, module in list(model.decoder.named_modules()):
        if type(module) is kind:
            parent, _, attribute = name.rpartition(".")
            setattr(model.decoder.get_submodule(parent), attribute, make(name, module))
    return model

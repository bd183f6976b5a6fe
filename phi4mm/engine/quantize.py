"""Weight-only quantisation of the decoder's linears, with torch's CPU kernels.

Adapters, towers, projectors and the embedding stay as they are. Decoding reads every weight for each token, so fewer
bytes are fewer milliseconds; prompts are bound by arithmetic and gain nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.engine.swap import swap_linears
from phi4mm.errors import Phi4MMError
from phi4mm.model.lora import LoRALinear
from phi4mm.model.phi4mm import Phi4MMModel

_KERNEL_DTYPE = torch.bfloat16  # the only one for which the kernels are fast
_WIDE = 128  # tokens from which int8 weights are widened once rather than for each few tokens
_GROUP_SIZES = (64, 32)  # neighbouring inputs that share a 4-bit scale
_PACKED_ROWS = 16  # the 4-bit kernel takes outputs in blocks


class QuantizedLinear(LoRALinear, ABC):
    """A frozen weight of few bits with the adapters as they were."""

    def __init__(self, linear: LoRALinear) -> None:
        nn.Module.__init__(self)
        self.in_size, self.out_size, self.lora = linear.in_size, linear.out_size, linear.lora

    def frozen(self, hidden: Tensor) -> Tensor:
        wide = hidden.to(_KERNEL_DTYPE).flatten(0, -2)
        return self.product(wide.contiguous()).unflatten(0, hidden.shape[:-1]).to(hidden.dtype)

    @abstractmethod
    def product(self, hidden: Tensor) -> Tensor:
        """[tokens, in_size] -> [tokens, out_size], both bfloat16."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight that the kernel multiplies with, [out_size, in_size], float32."""


class Int8Linear(QuantizedLinear):
    """Symmetric 8-bit weights, one scale for each output."""

    quantized: Tensor
    scales: Tensor

    def __init__(self, linear: LoRALinear) -> None:
        super().__init__(linear)
        weight = linear.weight.float()
        scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).to(_KERNEL_DTYPE)
        quantized = (weight / scales.float()[:, None]).round_().clamp_(-128, 127).to(torch.int8)
        self.register_buffer("quantized", quantized)
        self.register_buffer("scales", scales)

    def product(self, hidden: Tensor) -> Tensor:
        if len(hidden) < _WIDE:
            return torch.ops.aten._weight_int8pack_mm(hidden, self.quantized, self.scales)
        return F.linear(hidden, self.quantized.to(_KERNEL_DTYPE)) * self.scales

    def dequantized(self) -> Tensor:
        return self.quantized.float() * self.scales.float()[:, None]


class Int4Linear(QuantizedLinear):
    """4-bit weights, a scale and an offset for each output and group of neighbouring inputs."""

    packed: Tensor
    scales: Tensor

    def __init__(self, linear: LoRALinear, group_size: int) -> None:
        super().__init__(linear)
        self.group_size = group_size
        groups = linear.weight.float().unflatten(1, (-1, group_size))
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scales = ((high - low) / 15).clamp(min=1e-12).to(_KERNEL_DTYPE)
        middle = (low + 8 * scales.float()).to(_KERNEL_DTYPE)  # the kernel's weight is (q - 8) * scale + middle
        levels = ((groups - middle.float()[..., None]) / scales.float()[..., None] + 8).round_().clamp_(0, 15)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.flatten(1).to(torch.int32), 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.stack((scales, middle), dim=-1).transpose(0, 1).contiguous())

    def product(self, hidden: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(hidden, self.packed, self.group_size, self.scales)

    def dequantized(self) -> Tensor:
        # The packed order is the kernel's own, and differs between processors: its columns are asked for one by one.
        in_size = self.scales.shape[0] * self.group_size
        return self.product(torch.eye(in_size, dtype=_KERNEL_DTYPE)).float().T


@torch.no_grad()
def quantize_decoder(model: Phi4MMModel, kind: str) -> Phi4MMModel:
    """Quantise the decoder's linears in place, one after another: ``kind`` is "int8" or "int4".

    Raises:
        Phi4MMError: another kind; the model is not on the CPU; a linear's sizes do not suit the kernel.
    """
    if kind not in ("int8", "int4"):
        raise Phi4MMError(f"quantize={kind!r} is not available; pass 'int8', 'int4' or None")
    if model.device.type != "cpu":
        raise Phi4MMError(f"quantize={kind!r} is available on the CPU alone, not on {model.device}; pass device='cpu'")

    def make(name: str, linear: nn.Module) -> nn.Module:
        assert isinstance(linear, LoRALinear)
        if kind == "int8":
            return Int8Linear(linear).eval()
        out_size, in_size = linear.weight.shape
        fitting = [size for size in _GROUP_SIZES if in_size % size == 0]
        if not fitting or out_size % _PACKED_ROWS:
            raise Phi4MMError(
                f"quantize='int4': {name} is {out_size} x {in_size}, expected multiples of {_PACKED_ROWS} x "
                f"{_GROUP_SIZES[-1]}; pass quantize='int8'"
            )
        return Int4Linear(linear, fitting[0]).eval()

    return swap_linears(model, LoRALinear, make)

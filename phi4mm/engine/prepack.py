"""The decoder's linears in the order in which oneDNN's CPU kernels read them.

Plain ones are laid out anew in every call. Decoding reads every weight for each token, so it gains most. Only the order
in memory changes: results are the same to the bit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.engine.swap import swap_linears
from phi4mm.errors import Phi4MMError
from phi4mm.model.lora import LoRALinear
from phi4mm.model.phi4mm import Phi4MMModel

_PAGE_OUT = 21  # MADV_PAGEOUT, since Linux 5.4


def can_prepack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels have an order of their own: in bfloat16, on a CPU that oneDNN knows how to use for it."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def prepacked(weight: Tensor) -> Tensor:
    """A weight [out_size, in_size] in the kernels' order."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def product(hidden: Tensor, weight: Tensor) -> Tensor:
    """[..., in_size] times a plain or prepacked weight: [..., out_size]."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, None, "none", [], "")
    return F.linear(hidden, weight)


class PrepackedLinear(LoRALinear):
    """A frozen weight in the kernels' order, with the adapters as they were."""

    prepacked: Tensor

    def __init__(self, linear: LoRALinear) -> None:
        nn.Module.__init__(self)
        self.in_size, self.out_size, self.lora = linear.in_size, linear.out_size, linear.lora
        self.register_buffer("prepacked", prepacked(linear.weight.detach()))

    def frozen(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.prepacked)

    def plain(self) -> Tensor:
        """A copy of the weight as it was."""
        return self.prepacked.to_dense()


@torch.no_grad()
def prepack_decoder(model: Phi4MMModel) -> Phi4MMModel:
    """Prepack the decoder's linears in place, one after another.

    Raises:
        Phi4MMError: the kernels have no order of their own for the model's device and precision.
    """
    if not can_prepack(model.device, model.dtype):
        raise Phi4MMError(
            f"prepack=True is not available in {str(model.dtype).removeprefix('torch.')} on {model.device}; pass "
            "device='cpu' and dtype='bfloat16', or leave it out"
        )

    mapped = _mapped_files()

    def make(_: str, linear: nn.Module) -> nn.Module:
        assert isinstance(linear, LoRALinear)
        result = PrepackedLinear(linear).eval()
        _give_back(linear.weight, mapped)
        return result

    return swap_linears(model, LoRALinear, make)


def _mapped_files() -> list[range]:
    """The addresses at which files lie in memory."""
    if sys.platform != "linux":
        return []
    regions = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    places = (addresses.split("-") for addresses, _, _, _, inode, *_ in regions if inode != "0")
    return [range(int(start, 16), int(end, 16)) for start, end in places]


def _give_back(weight: Tensor, mapped: Sequence[range]) -> None:
    """Let the memory of a weight be used otherwise that can be read from its file again. It is advice: where it is not
    taken, nothing is lost."""
    if any(weight.data_ptr() in addresses for addresses in mapped):
        start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = max(weight.data_ptr() + weight.nbytes - start, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _PAGE_OUT)

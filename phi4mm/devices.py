"""Where a model runs: the device, the precision that is fastest there, and what the processor is."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch

from phi4mm.environment import free_memory, processor_name
from phi4mm.errors import Phi4MMError
from phi4mm.validate import shown

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = 100 * 2**20  # bytes in float32 of a model whose products are too small to gain from bfloat16 on a CPU
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# As torch.cpu.get_capabilities names them, the most capable first.
_X86 = {
    "amx_bf16": "AMX with bfloat16",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512_f": "AVX-512",
    "avx2": "AVX2",
}
_ARM = {"sve_bf16": "SVE with bfloat16", "bf16": "NEON with bfloat16", "sve": "SVE", "neon": "NEON"}
# How many of x86's are out of use under a value of ONEDNN_MAX_CPU_ISA that begins so; the first that fits counts.
_ONEDNN_LIMITS = {
    "SSE41": 4,
    "AVX2": 3,
    "AVX512_CORE_AMX": 0,
    "AVX512_CORE_BF16": 1,
    "AVX512_CORE_FP16": 1,
    "AVX512_CORE": 2,
    "AVX10": 0,
    "AVX": 4,
}


@dataclass(frozen=True)
class DeviceInfo:
    """What a loaded model runs on.

    Attributes:
        device: of the weights.
        dtype: of the weights and of what is computed.
        processor: its name.
        instruction_set: "AVX2", "AMX with bfloat16", ...; of a GPU its compute capability.
        threads: of each operation on the CPU.
        prepacked: whether the decoder's weights are in the order of the CPU's kernels.
        why: the reason for the precision, in a sentence.
    """

    device: torch.device
    dtype: torch.dtype
    processor: str
    instruction_set: str
    threads: int
    prepacked: bool
    why: str

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.device.type == "cpu" else ""
        prepacked = ", prepacked" if self.prepacked else ""
        return (
            f"{dtype_name(self.dtype)} on {self.device}: {self.processor}, {self.instruction_set}{threads}{prepacked} "
            f"({self.why})"
        )


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name; "auto" is the accelerator where there is one, otherwise the CPU.

    Raises:
        Phi4MMError: it is not available.
    """
    if not isinstance(name, str | torch.device) or str(name) == "meta":
        raise Phi4MMError(
            f"device is {shown(name)}; expected 'auto', a name such as 'cpu' or 'cuda:1', or a torch.device"
        )
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Phi4MMError(f"device {shown(str(name))} is not available here ({reason}); try 'auto' or 'cpu'") from error
    return device


def prepare(device: torch.device) -> None:
    """Choose the attention kernels of a GPU, for the whole process.

    cuDNN's, which torch prefers on Hopper, makes a plan for every new length: a decode step of 8 rows of
    Phi-4-mini took 97 ms with it and 23 ms without (H100, torch 2.11).
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def resolve_dtype(name: str | torch.dtype) -> torch.dtype | None:
    """The floating-point type of that name; ``None`` for "auto".

    Raises:
        Phi4MMError: it is not one of those that a model can have.
    """
    if isinstance(name, torch.dtype):
        if name in _DTYPES.values() or name == torch.float64:
            return name
    elif name == "auto":
        return None
    elif isinstance(name, str) and name in _DTYPES:
        return _DTYPES[name]
    raise Phi4MMError(f"dtype is {shown(str(name))}; expected 'auto' or one of {', '.join(_DTYPES)}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16, and the kernels may use them.

    oneDNN supports bfloat16 on every processor with AVX-512 by emulating it, at less than the speed of float32:
    ``torch.ops.mkldnn._is_mkldnn_bf16_supported`` is true there. ``ONEDNN_MAX_CPU_ISA`` makes oneDNN do without
    instructions that the processor has.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and "bf16" in _instruction_set()


def _instruction_set() -> str:
    """The most capable one that the kernels use on this processor, as torch names it; "" where it is none of ours."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    unused = next((count for name, count in _ONEDNN_LIMITS.items() if limit.startswith(name)), 0)
    capabilities = torch.cpu.get_capabilities()
    return next((name for name in [*list(_X86)[unused:], *_ARM] if capabilities.get(name, False)), "")


def choose_dtype(
    requested: torch.dtype | None,
    device: torch.device,
    *,
    checkpoint_dtype: torch.dtype,
    num_bytes_float32: int,
    free_bytes: int,
) -> tuple[torch.dtype, str]:
    """The precision to run in, and why.

    Where none is requested it is the fastest that fits and loses nothing of the checkpoint:

    - float32 on a CPU where the weights take less than 100 MiB in it: bfloat16 has kernels of its own for every length
      of a clip, and making them takes longer than small products gain;
    - bfloat16 where the checkpoint is stored in it (or in float8) and the processor has instructions for it;
    - without them float32 on a CPU, where the weights take at most half of the free memory, and float16 on a GPU;
    - otherwise the checkpoint's own: a float32 checkpoint stays float32, so as not to round it unasked.

    Args:
        requested: taken as it is; ``None`` to choose.
        device: where the model shall be.
        checkpoint_dtype: of the stored weights.
        num_bytes_float32: that the weights take in float32.
        free_bytes: of the device.
    """
    if requested is not None:
        return requested, "as requested"
    if checkpoint_dtype in _FLOAT8:
        checkpoint_dtype = torch.bfloat16  # which holds every value of it; nothing is computed in float8
    own = f"the checkpoint's own: {dtype_name(checkpoint_dtype)}"
    if checkpoint_dtype not in (torch.bfloat16, torch.float16):
        return checkpoint_dtype, f"{own} is not rounded unasked"
    if device.type == "cpu" and num_bytes_float32 <= min(_SMALL, free_bytes // 2):
        return torch.float32, "a model this small is faster in float32"
    if checkpoint_dtype == torch.bfloat16 and has_bfloat16(device):
        return torch.bfloat16, "the processor has instructions for bfloat16"
    if device.type == "cpu":
        lacking = "float16 is for GPUs"
        if checkpoint_dtype == torch.bfloat16:
            lacking = "the processor has no instructions for bfloat16"
        if 2 * num_bytes_float32 <= free_bytes:
            return torch.float32, lacking
        return checkpoint_dtype, f"{lacking}, and float32 would take over half of the free memory"
    if checkpoint_dtype == torch.bfloat16:
        return torch.float16, "the GPU has no instructions for bfloat16"
    return checkpoint_dtype, own


def free_bytes(device: torch.device) -> int:
    """Of the device's memory, or of what this process may use of the machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def describe(device: torch.device, dtype: torch.dtype, *, prepacked: bool, why: str) -> DeviceInfo:
    """The device with what its processor is."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        processor, instruction_set = properties.name, f"compute capability {properties.major}.{properties.minor}"
    elif device.type == "cpu":
        processor = processor_name()
        instruction_set = (_X86 | _ARM).get(_instruction_set(), platform.machine())
    else:
        processor, instruction_set = device.type, "unknown instruction set"
    return DeviceInfo(device, dtype, processor, instruction_set, torch.get_num_threads(), prepacked, why)

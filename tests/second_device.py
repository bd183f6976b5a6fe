"""A device "second" for machines without a GPU: its tensors lie in the CPU's memory, but do not say so, and refuse to
be computed with those that do, as a GPU's refuse.

``install()`` once in a process of its own: it changes what PyTorch knows of devices.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
aten = torch.ops.aten
# What may take tensors of both: copies between them, and, as on a GPU, indices and sizes that lie on the CPU.
CROSSING = {
    aten.copy_.default,
    aten._to_copy.default,
    aten._copy_from.default,
    aten.index.Tensor,
    aten.index_put_.default,
}


class SecondTensor(Tensor):
    """Holds a tensor of the CPU, ``raw``, of its own shape and strides."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> SecondTensor:
        made: SecondTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=f"{NAME}:0",
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(torch.tensor(index, device=NAME) if isinstance(index, list) else index)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SecondTensor({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return compute(op, arguments, keywords or {})


def compute(op: Any, arguments: Any, keywords: Any) -> Any:
    """Run an operator of PyTorch on what the tensors hold."""
    asked = keywords.get("device")
    plain: list[Tensor] = []
    own: list[SecondTensor] = []

    def look(value: Any) -> Any:
        if isinstance(value, SecondTensor):
            own.append(value)
            return value.raw
        if isinstance(value, Tensor) and value.dim():
            plain.append(value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    raw_arguments, raw_keywords = tree_map(look, arguments), tree_map(look, keywords)
    if own and plain and op not in CROSSING:
        raise RuntimeError(f"{op}: expected all tensors on one device, found {NAME} and cpu")
    result = op(*raw_arguments, **raw_keywords)
    if asked is not None and torch.device(asked).type == "cpu":
        return result
    if op._schema.is_mutable:  # what was written in place is what was handed in
        held = {id(value.raw): value for value in own}
        return tree_map(lambda value: held.get(id(value), value) if isinstance(value, Tensor) else value, result)
    return tree_map(lambda value: SecondTensor(value) if isinstance(value, Tensor) else value, result)


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def install() -> torch.device:
    """Make the device known and return it."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    fallbacks, operators = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallbacks.fallback(compute_boxed, "PrivateUse1")
    fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # nothing is cast
    # By themselves these make an empty tensor and let it grow, or are moved where Python is not asked.
    for name in ("arange", "arange.start", "arange.start_step"):
        operators.impl(name, partial(compute_boxed, operator_named(name)), "PrivateUse1")
    make = torch.tensor

    def make_and_move(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = make(data, **options)
        return made if device is None else made.to(device)

    torch.tensor = make_and_move
    _KEPT.extend((fallbacks, operators))
    return torch.device(NAME)


def compute_boxed(op: Any, *arguments: Any, **keywords: Any) -> Any:
    return compute(op, arguments, keywords)


def operator_named(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


_KEPT: list[Any] = []  # a library takes its operators with it when it goes

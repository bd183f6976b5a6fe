"""LoRA adapters as the folders that peft writes: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file

from phi4mm.checkpoint.names import LoRAName, lora_name, peft_name, stored_name
from phi4mm.checkpoint.schema import Alpha, Dropout, Rank, Section, checked
from phi4mm.checkpoint.source import read_json
from phi4mm.checkpoint.tensors import TensorFiles, find_shards
from phi4mm.errors import AdapterError, CheckpointError
from phi4mm.model.config import AdapterConfig
from phi4mm.model.lora import LoRA, lora_linears
from phi4mm.model.phi4mm import Phi4MMModel

_PLAIN = "use a plain LoRA adapter, as peft writes it"

# A pattern, not a list: the speech tower of transformers' model has projections of the same names.
TARGET_MODULES = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"

_Layer = Annotated[int, Field(ge=0, lt=512)]
_Empty = Annotated[dict[str, Any], Field(max_length=0)] | Annotated[list[Any], Field(max_length=0)]


class _PeftConfig(Section):
    """``adapter_config.json``."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    lora_dropout: Dropout = 0.0
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: _Layer | list[_Layer] | None = None
    use_dora: Literal[False] = False
    use_rslora: Literal[False] = False
    bias: Literal["none"] = "none"
    lora_bias: Literal[False] = False
    fan_in_fan_out: Literal[False] = False
    rank_pattern: _Empty | None = None
    alpha_pattern: _Empty | None = None
    modules_to_save: _Empty | None = None
    trainable_token_indices: _Empty | None = None
    init_lora_weights: Literal[True, False, "gaussian", "eva", "orthogonal"] = True  # others change frozen weights too

    def names(self, linear: str) -> bool:
        """Whether it is certain to be of ``linear``, a name in transformers' model.

        Patterns other than our own are not run, as one made for it can keep a program busy for ever; what they name
        follows from the tensors.
        """
        if self.exclude_modules:
            return False
        if self.layers_to_transform is not None:
            chosen = self.layers_to_transform
            if int(linear.split(".")[2]) not in (chosen if isinstance(chosen, list) else [chosen]):
                return False
        targets = self.target_modules
        if isinstance(targets, str):
            return targets in (TARGET_MODULES, "all-linear")
        return any(linear == target or linear.endswith(f".{target}") for target in targets or ())


def read_adapter_config(folder: Path, name: str) -> AdapterConfig:
    """Rank, alpha and dropout of the PEFT folder of the adapter ``name``.

    Raises:
        CheckpointError: the folder or a key is missing, or the adapter is of a kind that a LoRA sum cannot hold.
    """
    path = folder / "adapter_config.json"
    config = checked(_PeftConfig, read_json(path), str(path), _PLAIN)
    try:
        return AdapterConfig(name, config.r, config.lora_alpha, config.lora_dropout)
    except AdapterError as error:
        raise CheckpointError(f"{folder}: {error}; rename the folder") from error


def open_adapter(folder: Path) -> TensorFiles:
    """The tensors of a PEFT folder.

    Raises:
        CheckpointError: they are absent or broken.
    """
    return TensorFiles(find_shards(folder, "adapter_model"))


def adapted_linears(folder: Path, files: TensorFiles, linears: Iterable[str]) -> tuple[str, ...]:
    """The linears whose tensors a PEFT folder must hold: those that it was trained on. For others the update is zero.

    Args:
        folder: with ``adapter_config.json``.
        files: the tensors beside it.
        linears: names of all that there are, in the decoder.

    Raises:
        CheckpointError: it was trained on none of them.
    """
    path = folder / "adapter_config.json"
    config = checked(_PeftConfig, read_json(path), str(path), _PLAIN)
    adapted = tuple(
        linear
        for linear in linears
        if config.names(stored_name(f"decoder.{linear}", "transformers"))
        or any(peft_name(LoRAName(f"decoder.{linear}", "", matrix)) in files.shapes for matrix in ("a", "b"))
    )
    if not adapted:
        raise CheckpointError(
            f"{folder}: has no tensor for a linear of this decoder; use an adapter that fits the model"
        )
    return adapted


def read_adapter(model: Phi4MMModel, config: AdapterConfig, folder: Path) -> dict[str, LoRA]:
    """The adapter of a PEFT folder, for ``Phi4MMModel.add_adapter``; the model is left as it is.

    Where it was trained on some of the linears only, it is zero for the others.

    The weights are copied, so the folder may change or go afterwards.

    Args:
        model: whose linears the adapter must fit; its device and precision are taken.
        config: from ``read_adapter_config``.

    Raises:
        CheckpointError: tensors are missing, misshapen or unknown.
    """
    files = open_adapter(folder)
    linears = lora_linears(model.decoder)
    adapted = adapted_linears(folder, files, linears)
    names = {
        (linear, matrix): peft_name(LoRAName(f"decoder.{linear}", config.name, matrix))
        for linear in adapted
        for matrix in ("a", "b")
    }
    shapes = {}
    for linear in adapted:
        shapes[names[linear, "a"]] = (config.rank, linears[linear].in_size)
        shapes[names[linear, "b"]] = (linears[linear].out_size, config.rank)
    files.check(shapes)
    parts = {}
    for linear, module in linears.items():
        if linear in adapted:
            a, b = (files.read(names[linear, matrix]).to(model.device, model.dtype, copy=True) for matrix in ("a", "b"))
        else:
            a = torch.zeros(config.rank, module.in_size, device=model.device, dtype=model.dtype)
            b = torch.zeros(module.out_size, config.rank, device=model.device, dtype=model.dtype)
        parts[linear] = LoRA(a, b, config.scale, config.dropout).requires_grad_(False)
    return parts


def check_adapter_config(folder: Path, expected: AdapterConfig) -> None:
    """Refuse a PEFT folder whose rank or alpha is another than ``expected``."""
    found = read_adapter_config(folder, expected.name)
    if (found.rank, found.alpha) != (expected.rank, expected.alpha):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: r is {found.rank} and lora_alpha {found.alpha:g}, expected "
            f"{expected.rank} and {expected.alpha:g} as in the model's configuration of adapter {expected.name!r}; "
            "correct the one that is wrong"
        )


def save_adapter(model: Phi4MMModel, name: str, folder: Path) -> None:
    """Write the adapter ``name`` of ``model`` as a PEFT folder, which must not exist yet.

    peft loads it onto transformers' ``Phi4MultimodalForCausalLM``.
    """
    adapter = model.adapters[name]
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": TARGET_MODULES,
        "bias": "none",
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    parts = ((lora_name(key), tensor) for key, tensor in model.state_dict().items())
    tensors = {
        peft_name(part): tensor.detach().cpu().contiguous() for part, tensor in parts if part and part.adapter == name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

"""LoRA adapters as the folders that peft writes: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from phi4mm.checkpoint.names import is_lora, peft_name
from phi4mm.checkpoint.settings import Settings
from phi4mm.checkpoint.source import read_json
from phi4mm.checkpoint.tensors import TensorFiles, find_shards
from phi4mm.errors import CheckpointError
from phi4mm.model.config import AdapterConfig
from phi4mm.model.lora import adapter_spans
from phi4mm.model.phi4mm import Phi4MMModel

# A pattern, not a list: the speech tower of transformers' model has projections of the same names.
TARGET_MODULES = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"

_ACCEPTED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "trainable_token_indices": ([],),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the frozen weights too
}


def adapter_parts(model: Phi4MMModel, name: str) -> Iterator[tuple[str, Tensor]]:
    """Names and views of the parts of the stacked ``lora_a`` and ``lora_b`` that belong to one adapter."""
    span = adapter_spans(model.config.adapters)[name]
    for key, tensor in model.state_dict().items():
        if is_lora(key):
            yield key, tensor[span] if key.endswith("lora_a") else tensor[:, span]


def read_adapter_config(folder: Path, name: str) -> AdapterConfig:
    """Rank, alpha and dropout of the PEFT folder of the adapter ``name``.

    Raises:
        CheckpointError: the folder or a key is missing, or the adapter is of a kind that a LoRA sum cannot hold.
    """
    path = folder / "adapter_config.json"
    settings = Settings(read_json(path), str(path))
    settings.require("peft_type", "r", "lora_alpha")
    settings.expect_each(_ACCEPTED)
    return AdapterConfig(
        name, settings.integer("r"), settings.number("lora_alpha"), settings.number("lora_dropout", 0.0, least=0.0)
    )


def open_adapter(folder: Path) -> TensorFiles:
    """The tensors of a PEFT folder.

    Raises:
        CheckpointError: they are absent or broken.
    """
    return TensorFiles(find_shards(folder, "adapter_model"))


def load_adapter(model: Phi4MMModel, name: str, folder: Path) -> None:
    """Copy a PEFT folder's weights into the adapter ``name`` of ``model``.

    Raises:
        CheckpointError: the model has no such adapter, or one of another rank or alpha; or tensors are missing,
            misshapen or unknown.
    """
    adapter = next((adapter for adapter in model.config.adapters if adapter.name == name), None)
    if adapter is None:
        known = ", ".join(repr(each.name) for each in model.config.adapters) or "none"
        raise CheckpointError(f"{folder}: the model has no adapter {name!r}, it has {known}; load it as one of these")
    check_adapter_config(folder, adapter)
    parts = {peft_name(key): part for key, part in adapter_parts(model, name)}
    files = open_adapter(folder)
    files.check({key: tuple(part.shape) for key, part in parts.items()})
    with torch.no_grad():
        for key, part in parts.items():
            part.copy_(files.read(key))


def check_adapter_config(folder: Path, expected: AdapterConfig) -> None:
    """Refuse a PEFT folder whose rank or alpha is another than ``expected``."""
    found = read_adapter_config(folder, expected.name)
    if (found.rank, found.alpha) != (expected.rank, expected.alpha):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: r is {found.rank} and lora_alpha {found.alpha:g}, expected "
            f"{expected.rank} and {expected.alpha:g} as the model's configuration says of adapter {expected.name!r}; "
            "correct the one that is wrong"
        )


def save_adapter(model: Phi4MMModel, name: str, folder: Path) -> None:
    """Write the adapter ``name`` of ``model`` as a PEFT folder, which must not exist yet.

    peft loads it onto transformers' ``Phi4MultimodalForCausalLM``.
    """
    adapter = next(adapter for adapter in model.config.adapters if adapter.name == name)
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
    tensors = {peft_name(key): part.detach().cpu().contiguous() for key, part in adapter_parts(model, name)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

"""LoRA adapters as the folders that peft writes: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

from safetensors.torch import save_file

from phi4mm.checkpoint.names import LoRAName, lora_name, peft_name
from phi4mm.checkpoint.settings import Settings
from phi4mm.checkpoint.source import read_json
from phi4mm.checkpoint.tensors import TensorFiles, find_shards
from phi4mm.errors import CheckpointError
from phi4mm.model.config import AdapterConfig
from phi4mm.model.lora import LoRA, lora_linears
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


def folder_name(adapter: str) -> str:
    """What the folder of an adapter is called in a checkpoint: its name, with what no folder may be called escaped."""
    return re.sub(r'^\.|[/\\:*?"<>|%\x00-\x1f]', lambda match: f"%{ord(match[0]):02X}", adapter)


def adapter_of_folder(name: str) -> str:
    """The inverse of ``folder_name``."""
    return unquote(name)


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


def read_adapter(model: Phi4MMModel, config: AdapterConfig, folder: Path) -> dict[str, LoRA]:
    """The adapter of a PEFT folder, for ``Phi4MMModel.add_adapter``; the model is left as it is.

    The weights are copied, so the folder may change or go afterwards.

    Args:
        model: whose linears the adapter must fit; its device and precision are taken.
        config: from ``read_adapter_config``.

    Raises:
        CheckpointError: tensors are missing, misshapen or unknown.
    """
    files = open_adapter(folder)
    linears = lora_linears(model.decoder)
    names = {
        (linear, matrix): peft_name(LoRAName(f"decoder.{linear}", config.name, matrix))
        for linear in linears
        for matrix in ("a", "b")
    }
    shapes = {}
    for linear, module in linears.items():
        shapes[names[linear, "a"]] = (config.rank, module.in_size)
        shapes[names[linear, "b"]] = (module.out_size, config.rank)
    files.check(shapes)
    parts = {}
    for linear in linears:
        a, b = (files.read(names[linear, matrix]).to(model.device, model.dtype, copy=True) for matrix in ("a", "b"))
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

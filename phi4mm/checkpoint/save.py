"""Write a model as a checkpoint folder, in our own layout or for transformers' ``Phi4MultimodalForCausalLM``."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from phi4mm.checkpoint.configs import own_config
from phi4mm.checkpoint.names import Layout, is_lora, stored_name, stored_shape, unused_vision_tensors
from phi4mm.checkpoint.peft_folder import save_adapter
from phi4mm.checkpoint.source import read_json
from phi4mm.checkpoint.transformers_config import preprocessor_config, tokenizer_files, transformers_config
from phi4mm.errors import CheckpointError
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.validate import check_choice


def save_checkpoint(
    model: Phi4MMModel,
    folder: str | os.PathLike[str],
    *,
    tokenizer_file: Path | None,
    layout: Literal["phi4mm", "transformers"] = "phi4mm",
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write a checkpoint, whole or not at all.

    Each adapter becomes a PEFT folder: ``adapters/<name>`` in our layout, ``<name>-lora`` in transformers'. In the
    latter, the vision tensors that nothing depends on (layers after the feature layer, last norm, pooling head) are
    written as zeros, norm weights as ones, so that transformers finds every tensor that it looks for. ``AutoProcessor``
    finds its settings and the chat template there, too.

    Args:
        model: what to save.
        folder: where to; it must not exist, or be empty.
        tokenizer_file: ``tokenizer.json`` to copy; ``None`` leaves the folder without one, and so not yet loadable.
        layout: "phi4mm" or "transformers".
        max_shard_bytes: where the weights are larger than this, they are split, and an index is written.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder holds something, or the layout cannot hold this model.
        PromptError: there is no such layout.
    """
    check_choice("layout", layout, ("phi4mm", "transformers"))
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise CheckpointError(f"{folder}: exists and is not an empty folder; remove it or save elsewhere")
    if tokenizer_file is not None and not tokenizer_file.is_file():
        raise CheckpointError(f"{tokenizer_file}: there is no such tokenizer file; name a tokenizer.json")
    configs: dict[str, Any] = {"config.json": own_config(model.config)}
    if layout == "transformers":
        configs = {"config.json": transformers_config(model.config, str(model.dtype).removeprefix("torch."))}
        assert model.config.vision is not None
        assert model.config.speech is not None
        configs["preprocessor_config.json"] = preprocessor_config(model.config.vision, model.config.speech)
        if tokenizer_file is not None:
            values, template = tokenizer_files(model.config, read_json(tokenizer_file))
            configs |= {"tokenizer_config.json": values, "chat_template.jinja": template}

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    try:
        for name, content in configs.items():
            if isinstance(content, str):
                (beside / name).write_text(content, encoding="utf-8")
            else:
                _write_json(beside / name, content)
        _write_weights(beside, _shards(_main_tensors(model, layout), max_shard_bytes))
        for adapter in model.config.adapters:
            where = f"{adapter.name}-lora" if layout == "transformers" else f"adapters/{adapter.name}"
            save_adapter(model, adapter.name, beside / where)
        if tokenizer_file is not None:
            shutil.copyfile(tokenizer_file, beside / "tokenizer.json")
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return folder


def _main_tensors(model: Phi4MMModel, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        if not is_lora(name):
            yield stored_name(name, layout), tensor.reshape(stored_shape(name, tuple(tensor.shape), layout))
    if layout == "transformers":
        for name, shape in unused_vision_tensors(model.config).items():
            fill = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            yield name, torch.full(shape, fill, dtype=model.dtype)


def _shards(tensors: Iterator[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Group tensors in their order, each group within ``max_bytes`` unless a single tensor exceeds it."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _write_weights(folder: Path, shards: Iterator[dict[str, Tensor]]) -> None:
    paths: list[Path] = []
    names: list[list[str]] = []
    total_size = 0
    for shard in shards:
        paths.append(folder / f"part-{len(paths)}")
        names.append(list(shard))
        total_size += sum(tensor.nbytes for tensor in shard.values())
        values = {name: tensor.detach().cpu().contiguous() for name, tensor in shard.items()}
        save_file(values, paths[-1], metadata={"format": "pt"})
    if len(paths) == 1:
        paths[0].rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (path, keys) in enumerate(zip(paths, names, strict=True), start=1):
        file_name = f"model-{number:05}-of-{len(paths):05}.safetensors"
        path.rename(folder / file_name)
        weight_map |= dict.fromkeys(keys, file_name)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

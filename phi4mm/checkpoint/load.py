"""Load a checkpoint of any layout into a ``Phi4MMModel``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from phi4mm.checkpoint.configs import read_config
from phi4mm.checkpoint.names import (
    Layout,
    is_rotary_table,
    lora_name,
    microsoft_lora_name,
    peft_name,
    stored_name,
    stored_shape,
    unused_vision_tensors,
)
from phi4mm.checkpoint.peft_folder import (
    adapted_linears,
    check_adapter_config,
    open_adapter,
    read_adapter_config,
)
from phi4mm.checkpoint.source import Source, check_inside, locate, tokenizer_file
from phi4mm.checkpoint.tensors import TensorFiles, find_shards
from phi4mm.checkpoint.tokenizer_ids import check_tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.lora import lora_linears
from phi4mm.model.phi4mm import Phi4MMModel


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: in eval mode, no parameter requiring a gradient.
        tokenizer_file: ``tokenizer.json``.
        config: every size.
        folder: where the files lie.
        layout: "phi4mm" (our own), "microsoft", "transformers" or "phi3" (text only).
    """

    model: Phi4MMModel
    tokenizer_file: Path
    config: Phi4MMConfig
    folder: Path
    layout: Layout


def load_checkpoint(
    source: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Callable[[torch.dtype, int], torch.dtype] | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Load a model and find its tokenizer.

    Weights are memory-mapped and go one by one to ``device`` and ``dtype``; where neither changes, the mapped file
    itself is the model's memory, so it must stay as it is while the model lives.

    Args:
        source: a folder, a hub id, or ``None`` for the bundled checkpoint.
        device: where the model shall be.
        dtype: of all weights; ``None`` for that of the checkpoint's token embedding (bfloat16 where that has 8 bits);
            or a function that chooses it, of that type and the number of weights.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: nothing to load there, or a file, a setting or a tensor of it is wrong.
    """
    place = locate(source, revision)
    layout, config = read_config(place.folder)
    tokenizer = tokenizer_file(place.folder)
    check_tokenizer(tokenizer, config.decoder.vocab_size)
    config, folders = _adapter_folders(place, layout, config)

    with torch.device("meta"), _WithoutInitialValues():
        model = Phi4MMModel(config)
    linears = tuple(lora_linears(model.decoder))
    weights = TensorFiles(find_shards(place.folder))
    adapters = {name: open_adapter(folder) for name, folder in folders.items()}
    adapted = {name: set(adapted_linears(folders[name], files, linears)) for name, files in adapters.items()}
    places = {name: _place(name, layout, weights, adapters, adapted) for name in model.state_dict()}
    _check(model, layout, places, weights, adapters)

    weight_dtype = weights.dtype(stored_name("decoder.embed_tokens.weight", layout))
    if weight_dtype.itemsize == 1:  # to store weights in, not to compute with
        weight_dtype = torch.bfloat16
    if isinstance(dtype, torch.dtype):
        weight_dtype = dtype
    elif dtype is not None:
        weight_dtype = dtype(weight_dtype, sum(tensor.numel() for tensor in model.state_dict().values()))
    state = {}
    for name, tensor in model.state_dict().items():
        place_of = places[name]
        if place_of is None:
            state[name] = torch.zeros(tensor.shape, device=device, dtype=weight_dtype)
        else:
            file, stored = place_of
            state[name] = file.read(stored).reshape(tensor.shape).to(device, weight_dtype)
    model.load_state_dict(state, assign=True)
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, config, place.folder, layout)


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves parameters as they are allocated: drawing values on the meta device would import torch's compiler first,
    which takes longer than the bundled checkpoint takes to load."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _adapter_folders(place: Source, layout: Layout, config: Phi4MMConfig) -> tuple[Phi4MMConfig, dict[str, Path]]:
    """The configuration with its adapters, and the PEFT folder of each; none where the main file holds them.

    Our own config.json names the adapters. In transformers' layout they are the folders called ``<name>-lora``.
    """
    if layout == "phi4mm":
        root = place.folder if place.adapters.is_relative_to(place.folder) else place.adapters
        folders = {adapter.name: place.adapters / adapter.name for adapter in config.adapters}
        for adapter in config.adapters:
            check_inside(folders[adapter.name], root)
            check_adapter_config(folders[adapter.name], adapter)
        return config, folders
    if layout != "transformers":
        return config, {}
    found = sorted(path.parent for path in place.folder.glob("*-lora/adapter_config.json"))
    for folder in found:
        check_inside(folder, place.folder)
    folders = {folder.name.removesuffix("-lora"): folder for folder in found}
    adapters = tuple(read_adapter_config(folder, name) for name, folder in folders.items())
    return replace(config, adapters=adapters), folders


def _place(
    name: str,
    layout: Layout,
    weights: TensorFiles,
    adapters: dict[str, TensorFiles],
    adapted: dict[str, set[str]],
) -> tuple[TensorFiles, str] | None:
    """The files that hold our tensor ``name``, and what it is called there; ``None`` for one of an adapter that was not
    trained on that linear, which is zero."""
    parts = lora_name(name)
    if parts is None:
        return weights, stored_name(name, layout)
    if parts.adapter in adapters:
        if parts.linear.removeprefix("decoder.") not in adapted[parts.adapter]:
            return None
        return adapters[parts.adapter], peft_name(parts)
    return weights, microsoft_lora_name(parts)


def _check(
    model: Phi4MMModel,
    layout: Layout,
    places: dict[str, tuple[TensorFiles, str] | None],
    weights: TensorFiles,
    adapters: dict[str, TensorFiles],
) -> None:
    """Compare every file with the model before anything is read."""
    expected: dict[TensorFiles, dict[str, tuple[int, ...]]] = {file: {} for file in (*adapters.values(), weights)}
    for name, tensor in model.state_dict().items():
        place = places[name]
        if place is None:
            continue
        file, stored = place
        expected[file][stored] = stored_shape(name, tuple(tensor.shape), layout)
    ignored: set[str] = set()
    if layout != "phi4mm":
        ignored |= {name for name in weights.shapes if is_rotary_table(name)}
        ignored |= unused_vision_tensors(model.config).keys()
        ignored |= {"lm_head.weight"} if model.config.decoder.tie_embeddings else set()
    for file, shapes in expected.items():
        file.check(shapes, ignored if file is weights else frozenset())

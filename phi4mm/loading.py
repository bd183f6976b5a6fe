"""A model made ready to run: one way for the commands, the evaluation and the benchmark, which so run the same code."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from phi4mm.checkpoint import Checkpoint, load_checkpoint
from phi4mm.devices import DeviceInfo, choose_dtype, describe, free_bytes, has_bfloat16, resolve_device, resolve_dtype
from phi4mm.engine.merge import merge as merge_adapter
from phi4mm.engine.prepack import can_prepack, prepack_decoder
from phi4mm.engine.quantize import quantize_decoder
from phi4mm.errors import Phi4MMError
from phi4mm.model.phi4mm import Phi4MMModel


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run.

    Attributes:
        model: in eval mode, no parameter requiring a gradient.
        tokenizer_file: ``tokenizer.json``.
        info: what it runs on.
    """

    model: Phi4MMModel
    tokenizer_file: Path
    info: DeviceInfo


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    merge: str | None = None,
    prepack: bool | Literal["auto"] = "auto",
    revision: str | None = None,
) -> Loaded:
    """Load a checkpoint as it runs fastest on the device.

    Args:
        source: ``None`` for the bundled checkpoint, a folder, or a hub id.
        device: "auto" takes a GPU where there is one; or any torch device.
        dtype: "auto" is the fastest precision that fits and loses nothing of the checkpoint (``choose_dtype``); or
            "float32", "bfloat16", "float16", or a torch dtype.
        quantize: "int8" or "int4": the decoder's linears in as many bits, on the CPU.
        merge: an adapter to merge into a copy of the decoder's weights.
        prepack: whether the decoder's linears are laid out in the order of the CPU's kernels: the same to the bit,
            and faster. "auto" does it in bfloat16 on a processor that has instructions for it, unless they are
            quantised.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: the checkpoint is not available, or its files are wrong.
        Phi4MMError: the device, precision, quantisation, adapter or order is not available, or they exclude one
            another.
    """
    if quantize is not None and prepack is True:
        raise Phi4MMError(f"quantize={quantize!r} and prepack=True do not go together; leave out all but one")
    where, requested = resolve_device(device), resolve_dtype(dtype)
    why = ""

    def choose(stored: torch.dtype, num_weights: int) -> torch.dtype:
        nonlocal why
        chosen, why = choose_dtype(
            requested,
            where,
            checkpoint_dtype=stored,
            num_bytes_float32=4 * num_weights,
            free_bytes=free_bytes(where),
        )
        return chosen

    checkpoint = load_checkpoint(source, device=where, dtype=choose, revision=revision)
    model = checkpoint.model
    _warn_of_missing_adapters(checkpoint)
    if quantize is not None:
        quantize_decoder(model, quantize)
    if prepack == "auto":
        # can_prepack alone is true where oneDNN emulates bfloat16.
        prepack = quantize is None and can_prepack(where, model.dtype) and has_bfloat16(where)
    if prepack:
        prepack_decoder(model)
    if merge is not None:
        merge_adapter(model, merge)
    return Loaded(model, checkpoint.tokenizer_file, describe(where, model.dtype, prepacked=prepack, why=why))


def _warn_of_missing_adapters(checkpoint: Checkpoint) -> None:
    """transformers' layout keeps adapters in folders of their own, which are easily left behind."""
    config = checkpoint.config
    towers = {"vision": config.vision, "speech": config.speech}
    known = {adapter.name for adapter in config.adapters}
    missing = [name for name, tower in towers.items() if tower is not None and name not in known]
    if checkpoint.layout == "transformers" and missing:
        names, folders = (" and ".join(each) for each in (missing, [f"{name}-lora" for name in missing]))
        warnings.warn(
            f"{checkpoint.folder}: the adapters {names} are missing; expected were the folders {folders} in it. Until "
            "they are loaded (adapters.load), such media are answered with adapter=None, the bare decoder, alone",
            stacklevel=4,
        )

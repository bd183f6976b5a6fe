"""Stage: the trained parts put together as a checkpoint, and the checkpoint put where it is shipped from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from phi4mm.checkpoint import save_checkpoint
from phi4mm.checkpoint.names import is_lora
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.files import replaced
from phi4mm.train.fingerprint import decoder_tensors, fingerprint

FLOAT8 = torch.float8_e4m3fn
SHIPPED = ("config.json", "model.safetensors", "tokenizer.json")


def assemble(config: Phi4MMConfig, decoder: Mapping[str, Tensor], *parts: Mapping[str, Tensor]) -> Phi4MMModel:
    """A float32 model of the frozen decoder and what stages learnt; the rest is at its initial values."""
    torch.manual_seed(0)
    model = Phi4MMModel(config)
    missing = model.decoder.load_state_dict(dict(decoder), strict=False).missing_keys
    if any(not is_lora(name) for name in missing):
        raise ValueError(f"the decoder lacks {missing}")
    for part in parts:
        unknown = model.load_state_dict(dict(part), strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"the model has no {unknown}")
    return model


def learnt(model: Phi4MMModel, prefixes: Sequence[str], adapter: str | None = None) -> dict[str, Tensor]:
    """What a stage learnt: the tensors whose names begin with one of ``prefixes``, and those of ``adapter``."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(prefixes)) or (adapter is not None and is_lora(name, adapter))
    }


def in_float8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as 8-bit floating point (3 bits of mantissa, steps of 1/512 below 1/64), vectors as they are."""
    return {name: tensor.to(FLOAT8) if tensor.dim() >= 2 else tensor for name, tensor in tensors.items()}


def export(model: Phi4MMModel, tokenizer_file: Path, folder: Path, *, expected_decoder: str) -> None:
    """Save as a checkpoint folder: the speech tower's matrices in 8 bits, to which its stage rounded them; all else in
    bfloat16.

    Raises:
        ValueError: the decoder is not, byte for byte, the one that was frozen.
    """
    model.to(torch.bfloat16)
    found = fingerprint(decoder_tensors(model.decoder))
    if found != expected_decoder:
        raise ValueError(f"the decoder's sha256 is {found}, was {expected_decoder} when it was frozen")
    assert model.speech is not None
    model.speech.tower.load_state_dict(in_float8(model.speech.tower.state_dict()), assign=True)
    if folder.exists():
        shutil.rmtree(folder)
    save_checkpoint(model, folder, tokenizer_file=tokenizer_file)


def ship(folder: Path, out: Path) -> None:
    """Copy a checkpoint folder to ``out/assets`` and its adapters to ``out/adapters``."""
    for name in SHIPPED:
        _copy(folder / name, out / "assets" / name)
    for file in sorted((folder / "adapters").glob("*/*")):
        _copy(file, out / "adapters" / file.parent.name / file.name)


def _copy(source: Path, target: Path) -> None:
    with replaced(target) as part:
        shutil.copyfile(source, part)

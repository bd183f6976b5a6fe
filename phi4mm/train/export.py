"""Stage: the trained parts put together as a checkpoint, and the checkpoint put where it is shipped from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from phi4mm.checkpoint import save_checkpoint
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.train.files import replaced
from phi4mm.train.fingerprint import backbone_tensors, fingerprint
from phi4mm.train.speech import PROJECTOR
from phi4mm.train.tower import initialise

log = logging.getLogger(__name__)

SHIPPED = ("config.json", "model.safetensors", "tokenizer.json")


def assemble(config: Phi4MMConfig, backbone: Mapping[str, Tensor], tower: Mapping[str, Tensor]) -> Phi4MMModel:
    """A float32 model with the frozen backbone and a tower; what is left is at its initial values."""
    torch.manual_seed(0)
    model = Phi4MMModel(config)
    missing = model.backbone.load_state_dict(dict(backbone), strict=False).missing_keys
    if any(not name.endswith((".lora_a", ".lora_b")) for name in missing):
        raise ValueError(f"the backbone lacks {missing}")
    assert model.speech is not None
    initialise(model.speech.tower)
    model.speech.tower.load_state_dict(dict(tower))
    return model


def export(model: Phi4MMModel, tokenizer_file: Path, folder: Path, *, expected_backbone: str) -> None:
    """Save in bfloat16 as a checkpoint folder.

    The projector of audio beside an image starts as a copy of the trained one.

    Raises:
        ValueError: the backbone is not, byte for byte, the one that was frozen.
    """
    assert model.speech is not None
    projectors = model.speech.projectors
    projectors["vision"].load_state_dict(projectors[PROJECTOR].state_dict())
    model.to(torch.bfloat16)
    found = fingerprint(backbone_tensors(model.backbone))
    if found != expected_backbone:
        raise ValueError(f"the backbone's sha256 is {found}, was {expected_backbone} when it was frozen")
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

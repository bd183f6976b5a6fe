"""The ``config.json`` of our own layout: what is written is read, and older files are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi4mm.checkpoint.configs import own_config, read_config
from phi4mm.errors import CheckpointError
from phi4mm.model.config import FrontEndConfig, Phi4MMConfig
from tests.conftest import TINY

BUNDLED = Path(__file__).parent.parent.parent / "assets"
FRONT_END = FrontEndConfig(max_seconds=8.0, detect_narrow_band=True, peak_level=0.3)


def read(folder: Path, values: dict[str, Any]) -> Phi4MMConfig:
    (folder / "config.json").write_text(json.dumps(values))
    layout, config = read_config(folder)
    assert layout == "phi4mm"
    return config


@pytest.mark.parametrize(
    "config",
    [
        Phi4MMConfig(),
        replace(TINY, front_end=FRONT_END),
        replace(TINY, vision=None),
        replace(TINY, speech=None, adapters=()),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, config: Phi4MMConfig) -> None:
    assert read(tmp_path, own_config(config)) == config


def test_the_bundled_file_is_written_as_it_was() -> None:
    _, config = read_config(BUNDLED)
    assert config.front_end == FRONT_END
    stored = json.loads((BUNDLED / "config.json").read_text())
    written = json.loads(json.dumps(own_config(config)))
    assert written == stored
    assert list(written["speech"]) == list(stored["speech"])


def test_older_files_lack_keys(tmp_path: Path) -> None:
    values = own_config(replace(TINY, front_end=FRONT_END))
    del values["speech"]["detect_narrow_band"], values["speech"]["peak_level"], values["adapters"][0]["dropout"]
    assert read(tmp_path, values) == replace(TINY, front_end=FrontEndConfig(max_seconds=8.0))


def test_keys_of_the_front_end_are_checked(tmp_path: Path) -> None:
    values = own_config(TINY)
    del values["speech"]["max_seconds"]
    values["speech"]["loudness"] = 1
    with pytest.raises(CheckpointError, match=r"speech\.max_seconds is missing; speech\.loudness is unknown"):
        read(tmp_path, values)

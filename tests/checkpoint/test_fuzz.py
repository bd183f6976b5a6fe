"""Changed settings of a checkpoint's JSON files: each loads and answers, or gives one short error of ours.

A sample of some hundred by default; ``--fuzz 100000`` tries all.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phi4mm.api import Phi4MM
from phi4mm.checkpoint import save_checkpoint
from phi4mm.engine.options import EngineOptions
from phi4mm.errors import Phi4MMError
from phi4mm.types import Request
from tests.checkpoint.microsoft import save_as_microsoft
from tests.conftest import TINY
from tests.reference.transformers_port import make_pair

CONFIG = replace(TINY, speech=replace(TINY.speech, window_tokens=500))  # which transformers' layout has
_DELETED = "(deleted)"
_DEEP: list[Any] = []
for _ in range(300):
    _DEEP = [_DEEP]
# fmt: off
_VALUES: tuple[Any, ...] = (
    _DELETED, None, True, False, "", "x", "1", "../x", "a" * 100_000, -1, 0, 1, 2, 3, 7, 1_000_000, 2**31, 2**63,
    10**30, 10**400, 0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), [], [1], [-1], ["x"], [None], [[1.0]],
    [1e9] * 6, _DEEP, {}, {"x": 1}, {"x": {"y": [None]}},
)
# fmt: on
_LEFT_ALONE = {"vocab", "merges"}  # their first entries are changed, but not all

Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def folders(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each layout, with the files that others put beside config.json."""
    root = tmp_path_factory.mktemp("fuzz")
    pair = make_pair(CONFIG)
    save_checkpoint(pair.ours, root / "phi4mm", tokenizer_file=tokenizer_file)
    save_checkpoint(pair.ours, root / "transformers", tokenizer_file=tokenizer_file, layout="transformers")
    save_as_microsoft(pair, root / "microsoft")
    shutil.copytree(root / "transformers", root / "phi3", ignore=shutil.ignore_patterns("*-lora", "preprocessor*"))
    _make_text_only(root / "phi3")
    for layout in ("microsoft", "phi3"):
        shutil.copy(tokenizer_file, root / layout / "tokenizer.json")
    shutil.copy(root / "transformers" / "preprocessor_config.json", root / "microsoft")
    return {path.name: path for path in root.iterdir()}


def _make_text_only(folder: Path) -> None:
    """Of a checkpoint in transformers' layout, the decoder as Phi-3."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "embed_tokens_extend" not in k}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"], config["audio_config"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phi3"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))


def _places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place in a JSON value; of lists, and of what has many entries, the first."""
    if path:
        yield path
    if isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))
    if isinstance(value, dict):
        for key in list(value)[: 1 if path and path[-1] in _LEFT_ALONE else None]:
            yield from _places(value[key], (*path, key))


def _changed(value: Any, path: Path_, new: Any) -> Any:
    """A copy with ``new`` at ``path``, or without it."""
    first, *rest = path
    copy = value.copy()
    if rest:
        copy[first] = _changed(value[first], tuple(rest), new)
    elif new is _DELETED:
        del copy[first]
    else:
        copy[first] = new
    return copy


def _cases(folder: Path) -> list[tuple[Path, Path_, Any]]:
    return [
        (file, path, value)
        for file in sorted(folder.rglob("*.json"))
        for path in _places(json.loads(file.read_text()))
        for value in _VALUES
    ]


def _answer(folder: Path, picture: Image.Image, sound: tuple[np.ndarray[Any, Any], int]) -> None:
    """Load it and ask about all kinds of input."""
    options = EngineOptions(cache_tokens=2048)
    with Phi4MM.from_pretrained(folder, device="cpu", dtype="float32", options=options) as model:
        requests = [Request.make("Hi", max_new_tokens=2)]
        if model.model.config.vision is not None:
            requests.append(Request.make("Hi", images=[picture], max_new_tokens=2))
        if model.model.config.speech is not None:
            requests.append(Request.make("Hi", audios=[sound], max_new_tokens=2))
        model.chat_batch(requests)


@pytest.mark.parametrize("layout", ["phi4mm", "transformers", "microsoft", "phi3"])
def test_changed_settings(folders: dict[str, Path], layout: str, pytestconfig: pytest.Config) -> None:
    cases = _cases(folders[layout])
    random.Random(0).shuffle(cases)
    picture = Image.new("RGB", (60, 40), "red")
    sound = (np.sin(np.arange(8000) / 20).astype(np.float32), 16000)
    _answer(folders[layout], picture, sound)
    problems = []
    for file, path, value in cases[: pytestconfig.getoption("fuzz") // 4]:
        before = file.read_text()
        file.write_text(json.dumps(_changed(json.loads(before), path, value)))
        try:
            _answer(folders[layout], picture, sound)
        except Phi4MMError as error:
            if "\n" in str(error) or len(str(error)) > 1500:
                problems.append(f"{file.name}: {path} = {value!r:.40}: message of {len(str(error))}: {error!s:.200}")
        except BaseException as error:  # panics of libraries in Rust are no Exceptions
            if isinstance(error, KeyboardInterrupt):
                raise
            problems.append(f"{file.name}: {path} = {value!r:.40}: {type(error).__name__}: {error!s:.200}")
        finally:
            file.write_text(before)
    assert not problems, "\n".join(problems)

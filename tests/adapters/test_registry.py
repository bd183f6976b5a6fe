"""The registry: what a running model has loaded, and how rows and the engine's thread are waited for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from phi4mm.adapters import Adapters
from phi4mm.checkpoint import save_adapter
from phi4mm.errors import AdapterError, CheckpointError
from phi4mm.model.batch import Batch
from phi4mm.model.config import AdapterConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route
from tests.conftest import TINY, randomise

T = TypeVar("T")


class Engine:
    """Runs functions at once, and writes down what happens."""

    def __init__(self) -> None:
        self.model = Phi4MMModel(TINY).eval().requires_grad_(False)
        randomise(self.model)
        self.events: list[str] = []
        self.adapters = Adapters(self.model, self.run, self.wait_unused)

    def run(self, function: Callable[[], T]) -> T:
        self.events.append("run")
        return function()

    @contextmanager
    def wait_unused(self, name: str) -> Iterator[None]:
        self.events.append(f"refuse {name}")
        try:
            yield
        finally:
            self.events.append(f"done {name}")

    def logits(self, *adapters: str) -> torch.Tensor:
        with torch.no_grad():
            return self.model(Batch(torch.arange(5)[None], torch.tensor([5]), (Route(adapters),)))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder of another rank and alpha than any of the model's."""
    folder = tmp_path_factory.mktemp("adapter") / "accent"
    model = Phi4MMModel(TINY)
    model.add_adapter(AdapterConfig("accent", rank=3, alpha=1.5, dropout=0.1))
    randomise(model, seed=9)
    save_adapter(model, "accent", folder)
    return folder


def test_load_and_unload(engine: Engine, folder: Path, tmp_path: Path) -> None:
    before, bare = engine.model.state_dict(), engine.logits()
    shutil.copytree(folder, tmp_path / "copy")
    engine.adapters.load("my.accent", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")  # the weights do not depend on the files
    assert engine.adapters.names == ("vision", "speech", "my.accent")
    assert engine.model.adapters["my.accent"] == AdapterConfig("my.accent", 3, 1.5, 0.1)
    assert engine.events == ["run"]
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())
    assert not any(module.training for module in engine.model.modules())
    with_it = engine.logits("my.accent")
    assert not torch.allclose(with_it, bare, atol=1e-2)
    assert torch.equal(engine.logits(), bare)

    engine.adapters.load("again", str(folder))
    assert torch.equal(engine.logits("again"), with_it)

    engine.adapters.unload("my.accent")
    assert engine.events[2:] == ["refuse my.accent", "run", "done my.accent"]
    engine.adapters.unload("again")
    assert engine.adapters.names == ("vision", "speech")
    assert engine.model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", ["", "auto", "speech+accent", "../accent", "org/accent", 5])
def test_names_that_no_request_could_use(engine: Engine, folder: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="is not a name for an adapter"):
        engine.adapters.load(name, folder)


def test_names_that_are_taken_or_unknown(engine: Engine, folder: Path) -> None:
    with pytest.raises(AdapterError, match="there is an adapter 'speech' already"):
        engine.adapters.load("speech", folder)
    with pytest.raises(AdapterError, match="'accent' is not loaded; the model has 'vision', 'speech'"):
        engine.adapters.unload("accent")
    assert engine.events[-1] == "done accent"


def test_a_bad_folder_leaves_the_model_as_it_is(engine: Engine, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="adapter_config"):
        engine.adapters.load("accent", tmp_path)
    shutil.copy(folder / "adapter_config.json", tmp_path)
    with pytest.raises(CheckpointError, match="adapter_model"):
        engine.adapters.load("accent", tmp_path)
    assert engine.events == []
    assert engine.adapters.names == ("vision", "speech")

"""Where a checkpoint is looked for: folders, hub ids (with a stand-in for the download), the bundled one."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from phi4mm.checkpoint import load_checkpoint, save_checkpoint
from phi4mm.checkpoint import source as source_module
from phi4mm.checkpoint.source import locate
from phi4mm.errors import CheckpointError
from phi4mm.model.phi4mm import Phi4MMModel
from tests.reference.transformers_port import small_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    return save_checkpoint(Phi4MMModel(small_config()), tmp_path / "saved", tokenizer_file=tokenizer)


def test_hub_id_is_downloaded_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append((repo_id, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    checkpoint = load_checkpoint("somebody/some-model", revision="refs/pr/70")
    assert checkpoint.folder == folder
    ((repo_id, options),) = calls
    assert repo_id == "somebody/some-model"
    assert options["revision"] == "refs/pr/70"

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in options["allow_patterns"])

    assert all(wanted(str(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file())
    assert wanted("speech-lora/adapter_model.safetensors")
    assert not any(wanted(name) for name in ("pytorch_model.bin", "adapter_model.pt", "modeling_phi4mm.py"))


def test_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=r"^somebody/some-model: .*no route to host.*network.*pass the folder$"):
        load_checkpoint("somebody/some-model")


@pytest.mark.parametrize("name", ["no/such/folder", "nowhere", "./a/b"])
def test_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(name)


def test_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(Path("somebody/some-model"))


def test_file_instead_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a file"):
        load_checkpoint(folder / "model.safetensors")


def test_revision_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="revision 'main' was given"):
        load_checkpoint(folder, revision="main")


@pytest.mark.parametrize("place", ["phi4mm/_bundled", "."])
def test_bundled_checkpoint_in_a_wheel_and_in_a_checkout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = tmp_path / "installation" / place
    root.mkdir(parents=True)
    (folder / "adapters").rename(root / "adapters")
    folder.rename(root / "assets")
    (tmp_path / "installation" / "phi4mm").mkdir(exist_ok=True)
    monkeypatch.setattr(source_module, "_PACKAGE", tmp_path / "installation" / "phi4mm")
    assert load_checkpoint().folder.resolve() == (root / "assets").resolve()
    assert locate(None).adapters.resolve() == (root / "adapters").resolve()


def test_no_bundled_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "_PACKAGE", tmp_path / "phi4mm")
    with pytest.raises(CheckpointError, match="reinstall phi4mm"):
        load_checkpoint()

"""Adapters that are loaded by request: where they may lie, and that they are there after a restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from phi4mm.adapters import Adapters
from phi4mm.api import Phi4MM
from phi4mm.errors import AdapterError
from phi4mm.serve.adapters import AdapterStore
from phi4mm.serve.options import Security, ServeOptions
from tests.serve.conftest import running

ROOT = Path(__file__).parent.parent.parent
ADMIN = {"authorization": "Bearer admin"}


@pytest.fixture
def model() -> Iterator[Phi4MM]:
    with Phi4MM.from_pretrained() as found:
        yield found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an adapter, beside one with another."""
    for folder in ("allowed/mine", "elsewhere"):
        shutil.copytree(ROOT / "adapters" / "speech", tmp_path / folder)
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "allowed"


def test_load_use_unload_and_restart(model: Phi4MM, root: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    options = ServeOptions(security=Security(admin_key="admin", adapters_root=root), state_file=state)
    with running(model, options) as server:

        def post(path: str, **body: str) -> httpx2.Response:
            return httpx2.post(f"{server.url}/v1/{path}", json=body, headers=ADMIN, timeout=30)

        assert post("load_lora_adapter", lora_name="mine", lora_path="mine").status_code == 200
        assert json.loads(state.read_text())["adapters"] == {"mine": str(root / "mine")}
        assert server.client().models.retrieve("mine").model_extra["parent"] == "phi4mm"  # type: ignore[index]
        reply = server.client().chat.completions.create(model="mine", messages=[{"role": "user", "content": "Hello"}])
        assert reply.model_extra is not None
        assert reply.model_extra["route"]["adapters"] == ["mine"]
        for body in (
            {"lora_name": "mine", "lora_path": "mine"},
            {"lora_name": "phi4mm", "lora_path": "mine"},
            {"lora_name": "a+b", "lora_path": "mine"},
            {"lora_name": "x", "lora_path": str(tmp_path / "elsewhere")},
            {"lora_name": "x", "lora_path": "../elsewhere"},
            {"lora_name": "x", "lora_path": "link"},
            {"lora_name": "x", "lora_path": "."},
            {"lora_name": "x", "lora_path": "a\0b"},
            {"lora_name": "x", "lora_path": "absent"},
            {"lora_name": "x"},
        ):
            answer = post("load_lora_adapter", **body)
            assert answer.status_code == 400, body
            assert str(tmp_path / "elsewhere") not in answer.json()["error"]["message"]
        assert model.adapters.names == ("vision", "speech", "mine")

        with Phi4MM.from_pretrained() as other:
            assert AdapterStore(other.adapters, state, root).restore() == []
            assert other.adapters.names == ("vision", "speech", "mine")

        assert post("unload_lora_adapter", lora_name="mine").status_code == 200
        assert post("unload_lora_adapter", lora_name="mine").status_code == 404
        assert post("unload_lora_adapter", lora_name="speech").status_code == 404
        assert json.loads(state.read_text())["adapters"] == {}


def test_a_list_that_cannot_be_loaded_any_more(model: Phi4MM, root: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    adapters: Adapters = model.adapters
    assert AdapterStore(adapters, state, root).restore() == []
    state.write_text(json.dumps({"adapters": {"gone": str(root / "gone"), "mine": str(root / "mine")}}))
    [problem] = AdapterStore(adapters, state, root).restore()
    assert "gone" in problem
    assert list(json.loads(state.read_text())["adapters"]) == ["mine"]
    for broken in ("", "[]", '{"adapters": 3}', "{"):
        state.write_text(broken)
        with pytest.raises(AdapterError, match="is not a list of adapters"):
            AdapterStore(adapters, state, root).restore()

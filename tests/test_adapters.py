"""Adapters come and go while requests run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi4mm import AdapterError, Phi4MM, PromptError
from phi4mm.checkpoint import save_adapter
from phi4mm.engine.options import EngineOptions
from phi4mm.model.config import AdapterConfig
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY, randomise
from tests.engine.brake import Brake, num_rows
from tests.media import speech

ASK: dict[str, Any] = {"text": "Hello", "audios": [speech(0.5)], "max_new_tokens": 8}
MINE = {**ASK, "adapter": ("speech", "mine")}


def make_model(seed: int = 0, *names: str) -> Phi4MMModel:
    adapters = (*TINY.adapters, *(AdapterConfig(name, rank=6, alpha=3.0) for name in names))
    model = Phi4MMModel(replace(TINY, adapters=adapters)).eval().requires_grad_(False)
    randomise(model, seed)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    save_adapter(make_model(7, "mine"), "mine", folder)
    return folder


@pytest.fixture
def model(tokenizer_file: Path) -> Iterator[Phi4MM]:
    with Phi4MM(make_model(), tokenizer_file, options=EngineOptions(cache_tokens=4096)) as model:
        yield model


def test_a_loaded_adapter_is_taken_alone_and_on_top(model: Phi4MM, folder: Path) -> None:
    plain = model.chat(**ASK)
    with pytest.raises(PromptError, match="'mine' is not in this model"):
        model.chat(**MINE)
    with Brake(at=2) as brake:
        running = model.submit({**ASK, "processors": [brake]})
        assert brake.reached.wait(20)
        loading = threading.Thread(target=model.adapters.load, args=("mine", folder))
        loading.start()
    loading.join(20)
    assert model.adapters.names == ("vision", "speech", "mine")
    both, on_top, alone = model.chat_batch([MINE, {**ASK, "adapter": "auto+mine"}, {**ASK, "adapter": "mine"}])
    assert running.result(20) == plain == model.chat(**ASK)
    assert both.route.adapters == on_top.route.adapters == ("speech", "mine")
    assert both.token_ids == on_top.token_ids
    assert len({both.token_ids, alone.token_ids, plain.token_ids}) == 3


def test_unloading_waits_for_the_rows_and_refuses_new_ones(model: Phi4MM, folder: Path) -> None:
    model.adapters.load("mine", folder)
    expected = model.chat(**MINE)
    with Brake(at=2) as brake:
        running = model.submit({**MINE, "processors": [brake]})
        waiting = model.submit(MINE)
        assert brake.reached.wait(20)
        unloading = threading.Thread(target=model.adapters.unload, args=("mine",))
        unloading.start()
        while "mine" not in model._client._users._retired:
            threading.Event().wait(0.001)
        with pytest.raises(AdapterError, match="'mine' is being unloaded"):
            model.chat("Hello", adapter="mine")
        assert isinstance(model.submit(MINE).exception(20), AdapterError)
        assert unloading.is_alive()
        assert not running.done
    assert running.result(20) == waiting.result(20) == expected
    unloading.join(20)
    assert model.adapters.names == ("vision", "speech")
    with pytest.raises(PromptError, match="'mine' is not in this model"):
        model.chat(**MINE)
    assert num_rows(model) == 0


def test_nothing_of_an_unloaded_adapter_is_in_the_cache(model: Phi4MM, folder: Path, tmp_path: Path) -> None:
    save_adapter(make_model(8, "mine"), "mine", tmp_path / "other")
    replies = []
    for source in (folder, tmp_path / "other", folder):
        model.adapters.load("mine", source)
        replies.append(model.chat("x" * 50, adapter="mine", max_new_tokens=8))
        model.adapters.unload("mine")
    assert [reply.usage.cached_tokens for reply in replies] == [0, 0, 0]
    assert replies[0] == replies[2] != replies[1]


def test_a_request_that_was_read_before_its_adapter_went_is_refused(model: Phi4MM, folder: Path) -> None:
    """And fails alone: it must not reach a step with others."""
    model.adapters.load("mine", folder)
    row = model.processor.row

    def late(request: Any) -> Any:
        made = row(request)
        if request.adapter == "mine":
            model.adapters.unload("mine")
        return made

    model.processor.row = late  # type: ignore[method-assign]
    with pytest.raises(AdapterError, match="'mine' was unloaded"):
        model.chat("Hello", adapter="mine")
    with pytest.raises(AdapterError, match="'mine' is not loaded"):
        model.adapters.unload("mine")


def test_cancelled_requests_do_not_keep_an_adapter(model: Phi4MM, folder: Path) -> None:
    model.adapters.load("mine", folder)
    with Brake(at=1) as brake:
        handles = [model.submit({**MINE, "processors": [brake], "n": 2}) for _ in range(3)]
        assert brake.reached.wait(20)
        for handle in handles:
            handle.cancel()
    model.adapters.unload("mine")
    assert model.adapters.names == ("vision", "speech")

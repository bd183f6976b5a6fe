"""One load: what it makes ready, and which options exclude one another."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phi4mm import Phi4MM, Phi4MMError, PromptError
from phi4mm.checkpoint import save_checkpoint
from phi4mm.devices import has_bfloat16
from phi4mm.engine.prepack import PrepackedLinear, can_prepack
from phi4mm.loading import load
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY, randomise
from tests.media import picture, speech

CPU = torch.device("cpu")


def is_prepacked(model: torch.nn.Module) -> bool:
    return any(isinstance(module, PrepackedLinear) for module in model.modules())


def test_auto_is_what_is_fastest_on_this_processor() -> None:
    loaded = load(device="cpu")
    assert loaded.model.dtype == loaded.info.dtype == torch.float32
    assert "small" in loaded.info.why
    assert not loaded.info.prepacked
    assert loaded.info.device == CPU
    assert loaded.tokenizer_file.name == "tokenizer.json"


def test_bfloat16_is_prepacked_where_the_processor_has_instructions_for_it() -> None:
    loaded = load(device="cpu", dtype="bfloat16")
    expected = has_bfloat16(CPU) and can_prepack(CPU, torch.bfloat16)
    assert is_prepacked(loaded.model) == loaded.info.prepacked == expected


def test_without_instructions_for_bfloat16_nothing_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    loaded = load(device="cpu", dtype="bfloat16")
    assert not is_prepacked(loaded.model)


def test_weights_are_plain_where_asked_and_where_they_are_quantised() -> None:
    assert not is_prepacked(load(device="cpu", dtype="bfloat16", prepack=False).model)
    assert not is_prepacked(load(device="cpu", quantize="int8").model)


def test_options_that_exclude_one_another() -> None:
    with pytest.raises(Phi4MMError, match="quantize='int8' and prepack=True do not go together"):
        load(quantize="int8", prepack=True)
    with pytest.raises(Phi4MMError, match="prepack=True is not available in float32"):
        load(device="cpu", dtype="float32", prepack=True)
    with pytest.raises(Phi4MMError, match="dtype is 'int7'"):
        load(dtype="int7")
    with pytest.raises(Phi4MMError, match="device 'abacus' is not available"):
        load(device="abacus")


def test_missing_adapters_of_transformers_layout(tokenizer_file: Path, tmp_path: Path) -> None:
    assert TINY.speech is not None
    whole = Phi4MMModel(replace(TINY, speech=replace(TINY.speech, window_tokens=500))).eval().requires_grad_(False)
    randomise(whole)
    folder = save_checkpoint(whole, tmp_path / "model", tokenizer_file=tokenizer_file, layout="transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, device="cpu")
    shutil.rmtree(folder / "speech-lora")
    with pytest.warns(UserWarning, match=r"model: the adapters speech are missing; .*folders speech-lora"):
        load(folder, device="cpu")
    shutil.rmtree(folder / "vision-lora")
    with pytest.warns(UserWarning, match=r"vision and speech are missing; .*vision-lora and speech-lora") as caught:
        model = Phi4MM.from_pretrained(folder, device="cpu")
    assert caught[0].filename == __file__
    options = {"adapter": None, "max_new_tokens": 4}
    media = {"images": [picture(20, 20)], "audios": [speech(0.3)]}
    with model, Phi4MM(whole, tokenizer_file) as complete:
        with pytest.raises(PromptError, match=r"adapter 'vision' is not in this model, which has none; .*adapter=None"):
            model.chat("x", **media)
        bare = complete.chat("x", **media, **options)
        assert model.chat("x", **media, **options) == bare
        assert bare.route.adapters == ()
        transcript = complete.transcribe(speech(0.5), vad=False, **options)
        assert model.transcribe(speech(0.5), vad=False, **options) == transcript

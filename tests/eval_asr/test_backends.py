"""The recognisers behind the protocol. Whisper's test wants a CTranslate2 folder in EVAL_ASR_WHISPER."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from eval_asr.backends import BackendOptions, load_recogniser
from eval_asr.errors import BackendError
from eval_asr.sources import open_source
from phi4mm.api import Phi4MM
from phi4mm.checkpoint import save_checkpoint
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY, randomise

NOISE = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert BackendOptions().label == "phi4mm-bundled"
    assert BackendOptions(model=str(tmp_path / "mine")).label == "mine"
    assert BackendOptions(model="microsoft/Phi-4-multimodal-instruct").label == "microsoft/Phi-4-multimodal-instruct"
    (tmp_path / "whisper-tiny.en").symlink_to(tmp_path / "mine")
    assert BackendOptions(model=str(tmp_path / "whisper-tiny.en")).label == "whisper-tiny.en"
    assert BackendOptions("transformers", str(tmp_path / "mine")).label == "transformers-mine"
    assert BackendOptions("faster-whisper", "tiny.en").label == "faster-whisper-tiny.en"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BackendOptions("kaldi"), "known are phi4mm, transformers, faster-whisper, pocketsphinx"),
        (BackendOptions("transformers"), "needs --model"),
        (BackendOptions("transformers", "no/such/folder"), "transformers cannot load it"),
        (BackendOptions("faster-whisper"), "needs --model"),
        (BackendOptions("faster-whisper", "./no/such/folder"), "faster-whisper cannot load it"),
        (BackendOptions("pocketsphinx", prompt="Write"), "takes no --prompt"),
        (BackendOptions("pocketsphinx", device="cuda"), "runs on a CPU"),
    ],
)
def test_what_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, options: BackendOptions, words: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if options.backend in ("faster-whisper", "pocketsphinx"):
        pytest.importorskip(options.backend.replace("-", "_"))
    with pytest.raises(BackendError, match=words) as caught:
        load_recogniser(options)
    assert "\n" not in str(caught.value)


def test_transformers_port(tokenizer_file: Path, tmp_path: Path) -> None:
    """A clip alone: there their encoder agrees with ours, and so does the text."""
    pytest.importorskip("torchvision")
    model = Phi4MMModel(replace(TINY, speech=replace(TINY.speech, window_tokens=500)))
    randomise(model)
    folder = save_checkpoint(model, tmp_path / "port", tokenizer_file=tokenizer_file, layout="transformers")
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    theirs = load_recogniser(BackendOptions("transformers", str(folder), device="cpu", max_new_tokens=8))
    ours = load_recogniser(BackendOptions("phi4mm", str(folder), device="cpu", max_new_tokens=8))
    assert theirs.transcribe([NOISE], "en") == ours.transcribe([NOISE], "en")
    assert len(theirs.transcribe([NOISE, NOISE[:9000]], "en")) == 2
    (folder / "speech-lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(BackendError, match="speech-lora"):
        load_recogniser(BackendOptions("transformers", str(folder), device="cpu"))


def test_ours_is_phi4mm(tiny_model: Phi4MMModel, tokenizer_file: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "tiny", tokenizer_file=tokenizer_file)
    recogniser = load_recogniser(BackendOptions(model=str(folder), device="cpu", prompt="Write.", max_new_tokens=5))
    model = Phi4MM(tiny_model, tokenizer_file)
    expected = [
        model.transcribe_batch([(clip, 16000)], prompt="Write.", max_new_tokens=5)[0].text
        for clip in (NOISE, NOISE[:9000])
    ]
    assert recogniser.transcribe([NOISE, NOISE[:9000]], "en") == expected
    recogniser.close()


def test_recordings_too_long_for_the_encoder_are_cut() -> None:
    """In their places among the short clips; alone too."""
    from eval_asr.backends.phi4mm import Phi4MMRecogniser

    class Model:
        closed = False

        def close(self) -> None:
            self.closed = True

        def transcribe_batch(self, audios: list[Any], **options: Any) -> list[Any]:
            return [SimpleNamespace(text=f"whole {len(samples)}") for samples, _ in audios]

        def transcribe(self, audio: Any, **options: Any) -> Any:
            assert options == {"prompt": "Write.", "max_new_tokens": 5}
            return SimpleNamespace(text=f"cut {len(audio[0])}")

    model = Model()
    recogniser = Phi4MMRecogniser(cast(Phi4MM, model), BackendOptions(prompt="Write.", max_new_tokens=5))
    short, long = np.zeros(640_000, np.float32), np.zeros(640_001, np.float32)
    assert recogniser.transcribe([long, short, long], "en") == ["cut 640001", "whole 640000", "cut 640001"]
    assert recogniser.transcribe([long], "en") == ["cut 640001"]
    recogniser.close()
    assert model.closed


def clip_of_a_word(data_folder: Path) -> tuple[str, np.ndarray]:
    clips = list(open_source(str(data_folder / "an4" / "train.jsonl")).open_clips())
    clip = next(clip for clip in clips if clip.text in ("YES", "NO", "GO", "STOP", "ENTER", "HELP"))
    return clip.text.lower(), clip.load(16000)[0]


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed")
def test_pocketsphinx_forgets_the_clip_before() -> None:
    recogniser = load_recogniser(BackendOptions("pocketsphinx"))
    alone = recogniser.transcribe([NOISE], "en")
    assert recogniser.transcribe([NOISE[:4000] * 9, np.zeros(8000, np.float32), NOISE], "en")[2:] == alone
    with pytest.raises(BackendError, match="for English, and a set is in 'de'"):
        recogniser.transcribe([NOISE], "de")


@pytest.mark.skipif("EVAL_ASR_WHISPER" not in os.environ, reason="no Whisper in EVAL_ASR_WHISPER")
def test_faster_whisper(data_folder: Path) -> None:
    word, samples = clip_of_a_word(data_folder)
    recogniser = load_recogniser(BackendOptions("faster-whisper", os.environ["EVAL_ASR_WHISPER"], device="cpu"))
    assert word in recogniser.transcribe([samples], "en")[0].lower()

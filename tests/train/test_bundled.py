"""The checkpoint that is shipped is the one that its cards tell of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from phi4mm.api import Phi4MM
from phi4mm.checkpoint import load_checkpoint
from phi4mm.checkpoint.names import is_lora
from phi4mm.train.data import HELD_OUT_FSDD, an4_held_out, read_clips
from phi4mm.train.drawing import PLAIN_FONT, PRINTED, draw_shapes, draw_text
from phi4mm.train.fingerprint import decoder_tensors, fingerprint
from phi4mm.train.measure import accuracy, asked_of, word_error_rate
from phi4mm.train.pictures import easy_vqa

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PHI4MM_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the data; name its folder in PHI4MM_DATA")


@pytest.fixture(scope="module")
def model() -> Iterator[Phi4MM]:
    with Phi4MM.from_pretrained(device="cpu") as model:
        yield model


@pytest.mark.parametrize("card", ["assets/README.md", "adapters/speech/README.md", "adapters/vision/README.md"])
def test_decoder_is_the_frozen_one_of_the_cards(card: str) -> None:
    model = load_checkpoint(ROOT / "assets").model  # as it is stored
    assert fingerprint(decoder_tensors(model.decoder)) in (ROOT / card).read_text(encoding="utf-8")


def test_samples_are_transcribed_as_their_manifest_says(model: Phi4MM) -> None:
    folder = ROOT / "assets" / "samples"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 6
    transcripts = model.transcribe_batch([folder / row["audio_filepath"] for row in rows])
    assert [transcript.text for transcript in transcripts] == [row["text"] for row in rows]


def test_sample_pictures_are_answered_as_their_manifest_says(model: Phi4MM) -> None:
    folder = ROOT / "assets" / "samples"
    rows = [json.loads(line) for line in (folder / "pictures.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("audio_filepath" in row for row in rows)
    for row in rows:
        asked_in = [folder / row["audio_filepath"]] if "audio_filepath" in row else []
        question = "" if asked_in else row["question"]
        assert model.chat(question, images=[folder / row["image_filepath"]], audios=asked_in).text == row["answer"]


def test_text_is_answered_alike_with_and_without_the_adapters(model: Phi4MM) -> None:
    questions = ["What comes after three?", "Spell seven.", "Who are you?", "Who was Mozart?", "Repeat: b seven two"]
    with_adapters = [reply.text for reply in model.chat_batch([{"text": text} for text in questions])]
    with Phi4MM.from_pretrained(device="cpu") as bare:
        for name, parameter in bare.model.named_parameters():
            if is_lora(name):
                parameter.data.zero_()
        assert [reply.text for reply in bare.chat_batch([{"text": text} for text in questions])] == with_adapters
    assert with_adapters[:2] == ["four", "s e v e n"]
    assert "do not know" in with_adapters[3]


@needs_data
def test_a_held_out_speakers_digits_are_right(model: Phi4MM) -> None:
    clips = [clip for clip in read_clips(DATA / "fsdd" / "train.jsonl", "fsdd") if clip.speaker in HELD_OUT_FSDD]
    assert word_error_rate(model, clips) < 0.04


@needs_data
def test_held_out_an4_speakers_are_understood(model: Phi4MM) -> None:
    clips = an4_held_out(read_clips(DATA / "an4" / "train.jsonl", "an4"))
    assert word_error_rate(model, clips) < 0.10


@needs_data
def test_held_out_pictures_are_seen(model: Phi4MM) -> None:
    pictures = [picture.open() for picture in easy_vqa(DATA / "easy_vqa" / "train").held_out]
    assert accuracy(model, asked_of(pictures, 400)) > 0.97


def test_shapes_are_counted_and_printed_text_is_read(model: Phi4MM) -> None:
    random = Random("not trained on")
    counted = asked_of([draw_shapes(random) for _ in range(25)])
    assert accuracy(model, counted) > 0.65
    printed = asked_of([draw_text(random, PRINTED, [PLAIN_FONT]) for _ in range(60)], 60)
    assert accuracy(model, printed) > 0.45

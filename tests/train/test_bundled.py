"""The checkpoint that is shipped is the one that its cards tell of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jiwer
import pytest

from phi4mm.api import Phi4MM
from phi4mm.train.data import HELD_OUT_FSDD, read_clips
from phi4mm.train.fingerprint import backbone_tensors, fingerprint

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PHI4MM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def model() -> Phi4MM:
    return Phi4MM.from_pretrained(device="cpu")


@pytest.mark.parametrize("card", ["assets/README.md", "adapters/speech/README.md", "adapters/vision/README.md"])
def test_backbone_is_the_frozen_one_of_the_cards(model: Phi4MM, card: str) -> None:
    assert fingerprint(backbone_tensors(model.model.backbone)) in (ROOT / card).read_text(encoding="utf-8")


def test_samples_are_transcribed_as_their_manifest_says(model: Phi4MM) -> None:
    folder = ROOT / "assets" / "samples"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 6
    transcripts = model.transcribe_batch([folder / row["audio_filepath"] for row in rows])
    assert [transcript.text for transcript in transcripts] == [row["text"] for row in rows]


@pytest.mark.skipif(not (DATA / "fsdd").exists(), reason="needs the fsdd data; name its parent folder in PHI4MM_DATA")
def test_a_held_out_speakers_digits_are_mostly_right(model: Phi4MM) -> None:
    clips = [clip for clip in read_clips(DATA / "fsdd" / "train.jsonl", "fsdd") if clip.speaker in HELD_OUT_FSDD]
    transcripts = model.transcribe_batch([clip.path for clip in clips], batch_size=32)
    assert jiwer.wer([" ".join(clip.words) for clip in clips], [transcript.text for transcript in transcripts]) < 0.09

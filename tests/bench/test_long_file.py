"""The long recording is what its starts and texts say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phi4mm.bench.long_recording import PAUSE, RATE, aligned_from, audible_from, read_manifest, write_long

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"


def test_clips_lie_where_they_are_said_to(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sound = random.normal(0, 0.1, RATE // 2)
    click = np.zeros(RATE // 2)
    click[:50] = 0.2
    samples = np.concatenate((click, sound)).astype(np.float32)
    assert audible_from(samples, 25.0) == pytest.approx(0.5, abs=0.03)

    soundfile.write(tmp_path / "clip.wav", np.stack((samples, samples), axis=1), RATE)
    (tmp_path / "clips.jsonl").write_text(json.dumps({"audio_filepath": "clip.wav", "text": "hiss"}) + "\n")
    [clip] = read_manifest(tmp_path / "clips.jsonl", lambda samples, text: audible_from(samples, 25.0))
    np.testing.assert_allclose(clip.samples, samples, atol=1e-4)

    starts, texts = write_long(tmp_path / "long.wav", [clip], 10.0)
    long, rate = soundfile.read(tmp_path / "long.wav", dtype="float32")
    assert (rate, set(texts), len(starts)) == (RATE, {"hiss"}, len(texts))
    assert 10 <= len(long) / RATE < 10 + 1 + PAUSE[1]
    for start in starts:
        at = round(start * RATE)
        assert np.abs(long[at - RATE // 10 : at - RATE // 20]).max() < 0.01
        assert np.abs(long[at + RATE // 20 : at + RATE // 10]).max() > 0.1


def test_an_alignment_finds_the_first_word() -> None:
    pytest.importorskip("pocketsphinx")
    samples, rate = soundfile.read(SAMPLES / "three_digits.flac", dtype="float32")
    assert rate == RATE
    late = np.concatenate((np.zeros(RATE, np.float32), samples))
    start = aligned_from(samples, "three five nine")
    assert start == pytest.approx(audible_from(samples, 30.0), abs=0.2)  # "th" is hardly audible
    assert aligned_from(late, "three five nine") == pytest.approx(1.0 + start, abs=0.05)

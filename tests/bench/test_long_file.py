"""The long recording is what its starts and texts say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phi4mm.bench.long_file import PAUSE, RATE, audible_from, read_manifest, write_long


def test_clips_lie_where_they_are_said_to(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sound = random.normal(0, 0.1, RATE // 2)
    click = np.zeros(RATE // 2)
    click[:50] = 0.2
    samples = np.concatenate((click, sound)).astype(np.float32)
    assert audible_from(samples, 25.0) == pytest.approx(0.5, abs=0.03)

    soundfile.write(tmp_path / "clip.wav", np.stack((samples, samples), axis=1), RATE)
    (tmp_path / "clips.jsonl").write_text(json.dumps({"audio_filepath": "clip.wav", "text": "hiss"}) + "\n")
    [(read, text)] = read_manifest(tmp_path / "clips.jsonl")
    np.testing.assert_allclose(read, samples, atol=1e-4)

    starts, texts = write_long(tmp_path / "long.wav", [(read, text)], 10.0, 25.0)
    long, rate = soundfile.read(tmp_path / "long.wav", dtype="float32")
    assert (rate, set(texts), len(starts)) == (RATE, {"hiss"}, len(texts))
    assert 10 <= len(long) / RATE < 10 + 1 + PAUSE[1]
    for start in starts:
        at = round(start * RATE)
        assert np.abs(long[at - RATE // 10 : at - RATE // 20]).max() < 0.01
        assert np.abs(long[at + RATE // 20 : at + RATE // 10]).max() > 0.1

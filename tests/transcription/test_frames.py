"""Speech is found under an offset, a hum and a rumble, in any blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phi4mm import Phi4MM
from phi4mm.inputs.audio import Waveform, load_audio
from phi4mm.transcription.detector import FRAME, SpeechDetector
from phi4mm.transcription.frames import Frame, frames
from phi4mm.transcription.pieces import cut

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
RATE = 16000


def disturbance(kind: str, length: int, rate: int) -> np.ndarray:
    time = np.arange(length) / rate
    sines = {
        "hum": [(0.2, 50)],
        "loud hum": [(0.5, 50)],
        "american hum": [(0.2, 60)],
        "rumble": [(0.3, 25)],
        "hum with harmonics": [(0.2, 50), (0.1, 100), (0.05, 150)],
    }
    if kind in sines:
        return sum(amplitude * np.sin(2 * np.pi * frequency * time) for amplitude, frequency in sines[kind])
    return np.full(length, {"offset": 0.1, "large offset": 0.6, "negative offset": -0.3}[kind])


KINDS = ["offset", "large offset", "negative offset", "hum", "loud hum", "american hum", "rumble", "hum with harmonics"]


@pytest.mark.parametrize("rate", [16000, 8000])
@pytest.mark.parametrize("kind", KINDS)
def test_speech_is_found_under_a_disturbance(kind: str, rate: int) -> None:
    clip = load_audio(SAMPLES / {16000: "telephone.flac", 8000: "telephone_8khz.flac"}[rate])
    before, after = np.zeros(rate), np.zeros(2 * rate)
    for level in (1.0, 0.2):
        clean = np.concatenate((before, level * clip.samples, after)).astype(np.float32)
        disturbed = (clean + disturbance(kind, len(clean), rate)).astype(np.float32)
        (expected,), (found,) = (
            cut(frames([Waveform(samples, rate)], SpeechDetector()), max_piece=30.0) for samples in (clean, disturbed)
        )
        assert found.start == pytest.approx(expected.start, abs=0.25)
        assert found.end == pytest.approx(expected.end, abs=0.25)
        first = round(found.offset * rate)
        assert np.array_equal(
            found.samples, disturbed[first : first + len(found.samples)]
        )  # the model gets it as it is


@pytest.mark.parametrize("kind", ["offset", "hum", "american hum"])
def test_words_under_a_disturbance(bundled: Phi4MM, kind: str) -> None:
    clip = load_audio(SAMPLES / "telephone.flac")
    samples = clip.samples + disturbance(kind, len(clip.samples), RATE)
    assert bundled.transcribe((samples, RATE)).text == "five five two eight oh one four"


@pytest.mark.parametrize("seconds", [0.3, 2.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbance_alone_is_no_speech(kind: str, seconds: float) -> None:
    steady = disturbance(kind, int(seconds * RATE) + 480, RATE)
    noise = np.random.default_rng(0).normal(0, 0.003, int(seconds * RATE))
    for begin in (0, 120, 240, 480):  # of a period of 50 Hz
        for samples in (steady[begin:][: len(noise)], steady[begin:][: len(noise)] + noise):
            detected = frames([Waveform(samples.astype(np.float32), RATE)], SpeechDetector())
            assert list(cut(detected, max_piece=30.0)) == []


def test_frames_do_not_depend_on_the_blocks_in_which_audio_comes() -> None:
    clip = load_audio(SAMPLES / "digit.flac")
    for samples in (clip.samples, clip.samples + np.float32(0.2)):
        whole = framed([samples])
        assert np.array_equal(np.concatenate([frame.samples for frame in whole]), samples)
        for size in (100, FRAME, 3777):
            parts = framed([samples[start : start + size] for start in range(0, len(samples), size)])
            assert [frame.level for frame in parts] == pytest.approx([frame.level for frame in whole], abs=1e-4)
            probabilities = [frame.probability for frame in whole]
            assert [frame.probability for frame in parts] == pytest.approx(probabilities, abs=1e-4)


def framed(parts: list[np.ndarray]) -> list[Frame]:
    return list(frames([Waveform(part, RATE) for part in parts], SpeechDetector()))


def test_levels_are_those_above_100_hz() -> None:
    time = np.arange(RATE) / RATE
    tone = 0.1 * np.sin(2 * np.pi * 1000 * time)
    clean, disturbed = (
        [frame.level for frame in frames([Waveform(samples.astype(np.float32), RATE)], None)]
        for samples in (tone, tone + 0.3 + 0.2 * np.sin(2 * np.pi * 50 * time))
    )
    assert clean == pytest.approx([-23.0] * len(clean), abs=0.2)
    assert disturbed[5:] == pytest.approx(clean[5:], abs=0.2)

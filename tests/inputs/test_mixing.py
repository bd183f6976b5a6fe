"""Channels that are mixed keep the speech of each, also where some are inverted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4mm import Phi4MM
from phi4mm.inputs.audio import load_audio, stream_audio
from phi4mm.inputs.mixing import mixed
from tests.media import speech

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
RATE = 16000


def mix(samples: np.ndarray, rate: int = RATE, size: int | None = None) -> np.ndarray:
    size = size or len(samples)
    blocks = ((samples[start : start + size], rate) for start in range(0, len(samples), size))
    return np.concatenate([block for block, _ in mixed(blocks)])


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples)))


VOICE, OTHER = (speech(2.0, seed)[0].astype(np.float64) * gain for seed, gain in ((0, 1.0), (1, 0.5)))
NOISE = np.random.default_rng(0).normal(0, 0.01, (len(VOICE), 6))
ORDINARY = {
    "equal": [VOICE, VOICE],
    "one silent": [VOICE, 0 * VOICE],
    "one quieter": [VOICE, 0.3 * VOICE],
    "unrelated noise": [NOISE[:, 0], NOISE[:, 1]],
    "two voices": [VOICE + 0.1 * OTHER[::-1], OTHER[::-1] + 0.1 * VOICE],
    "two voices inverted in part": [VOICE, OTHER[::-1] - 0.2 * VOICE],
    "six channels": [*(VOICE + noise for noise in NOISE.T)],
    "three of four": [VOICE, VOICE, VOICE, -VOICE],
    "silence": [0 * VOICE, 0 * VOICE],
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_channels_give_their_mean(kind: str) -> None:
    samples = np.stack(ORDINARY[kind], axis=1)
    assert np.array_equal(mix(samples), samples.mean(axis=1))


INVERTED = {
    "inverted": [VOICE, -VOICE],
    "weaker": [VOICE, -0.7 * VOICE],
    "under a common hum": [
        sign * VOICE + 0.5 * np.sin(np.arange(len(VOICE)) * 2 * np.pi * 50 / RATE) for sign in (1, -1)
    ],
    "with offsets": [VOICE + 0.2, -VOICE + 0.3],
    "with noise": [VOICE + NOISE[:, 0], -VOICE + NOISE[:, 1]],
    "two of four": [VOICE, VOICE, -VOICE, -VOICE],
    "beside silent channels": [VOICE, 0 * VOICE, -VOICE, 0 * VOICE],
}


@pytest.mark.parametrize("kind", INVERTED)
def test_inverted_channels_are_turned_over(kind: str) -> None:
    samples = np.stack(INVERTED[kind], axis=1)
    found = mix(samples)
    assert np.corrcoef(found, VOICE)[0, 1] > 0.98
    assert power(found - found.mean()) > 0.2 * power(VOICE)


def test_a_channel_may_be_inverted_from_a_place_on() -> None:
    sign = np.where(np.arange(len(VOICE)) < RATE, 1.0, -1.0)
    found = mix(np.stack((VOICE, sign * VOICE), axis=1))
    assert np.abs(found - VOICE)[np.r_[: RATE - RATE // 4, RATE + RATE // 4 : len(VOICE)]].max() < 1e-6
    assert np.abs(np.diff(found)).max() < 1.5 * np.abs(np.diff(VOICE)).max()  # no click


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3 * RATE), st.sampled_from([*ORDINARY, *INVERTED]))
def test_the_blocks_in_which_audio_comes_do_not_matter(size: int, kind: str) -> None:
    samples = np.stack({**ORDINARY, **INVERTED}[kind], axis=1)
    np.testing.assert_allclose(mix(samples, size=max(size, 50)), mix(samples), atol=1e-9)


def test_rates_and_channel_counts_may_change_on_the_way() -> None:
    def blocks() -> Iterator[tuple[np.ndarray, int]]:
        for rate, channels, length in ((RATE, 2, 5000), (RATE, 1, 777), (8000, 1, 10), (8000, 3, 5001), (RATE, 3, 3)):
            yield np.ones((length, channels)), rate

    lengths: dict[int, int] = {}
    for block, rate in mixed(blocks()):
        assert (block == 1).all()
        lengths[rate] = lengths.get(rate, 0) + len(block)
    assert lengths == {RATE: 5000 + 777 + 3, 8000: 10 + 5001}


@pytest.mark.parametrize("rate", [16000, 44100])
def test_words_of_stereo_with_an_inverted_side(bundled: Phi4MM, rate: int) -> None:
    import soxr

    clip = load_audio(SAMPLES / "telephone.flac")
    samples = clip.samples if rate == clip.sampling_rate else soxr.resample(clip.samples, clip.sampling_rate, rate)
    stereo = np.stack((samples, -samples), axis=1)
    assert bundled.transcribe((stereo, rate)).text == "five five two eight oh one four"
    assert bundled.transcribe((part, rate) for part in np.array_split(stereo, 50)).text == (
        "five five two eight oh one four"
    )


def test_a_mono_source_stays_to_the_bit() -> None:
    samples, rate = speech(1.0)
    assert np.array_equal(load_audio((samples, rate)).samples, samples)
    assert np.array_equal(np.concatenate([part.samples for part in stream_audio((samples, rate))]), samples)

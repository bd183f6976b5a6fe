"""Cutting, on made-up probabilities and on real sounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phi4mm.inputs.audio import Waveform, load_audio, stream_audio
from phi4mm.transcription.detector import FRAME, FRAME_SECONDS, SpeechDetector
from phi4mm.transcription.frames import Frame, frames
from phi4mm.transcription.pieces import Piece, cut

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
RATE = 16000


def made_up(*stretches: tuple[float, float], quiet: Sequence[float] = ()) -> Iterator[Frame]:
    """Frames of stretches (seconds, probability); a frame begins with its number, or is silent at ``quiet`` seconds."""
    number = 0
    for seconds, probability in stretches:
        for _ in range(round(seconds / FRAME_SECONDS)):
            silent = any(abs(number * FRAME_SECONDS - place) < FRAME_SECONDS for place in quiet)
            samples = np.zeros(FRAME, np.float32)
            samples[: 1 + number % 2 * FRAME] = 0 if silent else number + 1
            yield Frame(samples, RATE, probability, -100.0 if silent else number % 2 * 27.0)  # a level that varies
            number += 1


def heard(samples: np.ndarray, rate: int = RATE, **options: float) -> list[Piece]:
    detected = frames([Waveform(samples.astype(np.float32), rate)], SpeechDetector())
    return list(cut(detected, **{"max_piece": 30.0, **options}))


def test_pauses_end_pieces_and_each_keeps_its_surroundings() -> None:
    first, second = cut(made_up((5, 0), (2, 1), (1.5, 0), (3, 1), (2, 0)), max_piece=30, min_silence=1)
    assert (first.start, first.end) == pytest.approx((5, 7), abs=0.04)
    assert (second.start, second.end) == pytest.approx((8.5, 11.5), abs=0.04)
    for piece in (first, second):
        assert piece.offset == pytest.approx(piece.start - 0.4, abs=0.04)
        assert len(piece.samples) / RATE == pytest.approx(piece.end - piece.start + 0.8, abs=0.08)
        assert piece.samples[0] == round(piece.offset / FRAME_SECONDS) + 1
        assert piece.speech == 1.0


def test_short_pauses_do_not_end_pieces() -> None:
    (piece,) = cut(made_up((1, 1), (0.8, 0), (1, 1)), max_piece=30, min_silence=1)
    assert (piece.start, piece.end) == pytest.approx((0, 2.8), abs=0.04)
    assert piece.speech == pytest.approx(2 / 2.8, abs=0.03)


def test_a_breath_is_kept_but_speech_begins_after_it() -> None:
    for breath, start in ((0.064, 1.4), (0.16, 1.0)):  # the second is long enough for a word
        (piece,) = cut(made_up((1.0, 0.0), (breath, 0.9), (0.4 - breath, 0.0), (1.0, 0.9), (2.0, 0.0)), max_piece=30.0)
        assert piece.start == pytest.approx(start, abs=FRAME_SECONDS)
        assert piece.offset == pytest.approx(0.6, abs=2 * FRAME_SECONDS)
        assert piece.end == pytest.approx(2.4, abs=2 * FRAME_SECONDS)


def test_a_long_stretch_is_cut_in_the_longest_pause_of_its_second_half() -> None:
    parts = made_up((2, 1), (0.6, 0), (3, 1), (0.2, 0), (1, 1), (0.4, 0), (6, 1), (1, 0))
    pieces = list(cut(parts, max_piece=10, min_silence=1))
    assert [piece.start for piece in pieces] == pytest.approx([0, 7.2], abs=0.05)
    assert [piece.end for piece in pieces] == pytest.approx([6.8, 13.2], abs=0.05)
    assert pieces[1].offset == pytest.approx(7.0, abs=0.05)


def test_without_a_pause_it_is_cut_where_it_is_quietest() -> None:
    pieces = list(cut(made_up((12, 1), quiet=[3, 6.5]), max_piece=8))
    assert pieces[1].offset == pytest.approx(6.5, abs=0.05)
    joined = np.concatenate([piece.samples for piece in pieces])
    assert len(joined) == round(12 / FRAME_SECONDS) * FRAME


def test_no_sample_is_lost_or_doubled_and_no_piece_is_too_long() -> None:
    random = np.random.default_rng(0)
    parts = list(made_up(*((float(random.uniform(0.1, 3)), float(turn % 2)) for turn in range(200))))
    pieces = list(cut(parts, max_piece=6, min_silence=0.7))
    assert len(pieces) > 50
    assert max(len(piece.samples) for piece in pieces) <= 6 * RATE + FRAME
    voiced = {round(number) for number, frame in enumerate(parts) if frame.probability == 1}
    held = [{round(value) - 1 for value in piece.samples[::FRAME]} for piece in pieces]
    assert voiced <= set().union(*held)
    assert not any(first & second & voiced for first, second in pairwise(held))


def test_without_a_detector_everything_is_kept() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 5 * RATE + 77).astype(np.float32)
    (piece,) = cut(
        frames([Waveform(samples[:999], RATE), Waveform(samples[999:], RATE)], None), max_piece=5.1, judge=False
    )
    assert np.array_equal(piece.samples, samples)
    pieces = list(cut(frames([Waveform(samples, RATE)], None), max_piece=2, judge=False))
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), samples)


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.[fwm]*[acv3]")), ids=lambda file: file.name)
def test_short_clips_are_handed_over_nearly_whole(file: Path) -> None:
    samples = np.concatenate([part.samples for part in stream_audio(file)])
    (piece,) = cut(frames(stream_audio(file), SpeechDetector()), max_piece=30)
    assert len(piece.samples) > 0.8 * len(samples)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("kind", ["silence", "white", "tone", "tone after silence", "chord", "applause", "clicks"])
def test_what_is_not_speech_gives_nothing(kind: str, seconds: float) -> None:
    random = np.random.default_rng(1)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = 0.1 * np.sin(2 * np.pi * 440 * time)
    noise = random.normal(0, 0.1, len(time))
    claps = np.convolve(random.random(len(time)) < 0.003, np.exp(-np.arange(800) / 150))[: len(time)]
    sounds = {
        "silence": np.zeros(len(time)),
        "white": noise,
        "tone": tone,
        "tone after silence": tone * (time > seconds / 2),
        "chord": tone + 0.2 * np.sin(2 * np.pi * 554 * time),
        "applause": noise * claps,
        "clicks": 0.5 * (random.random(len(time)) > 0.999),
    }
    assert heard(sounds[kind]) == []


def test_a_fraction_of_a_second_of_speech_is_heard() -> None:
    digit = load_audio(SAMPLES / "digit.flac")
    for level in (1.0, 0.05):
        (piece,) = heard(digit.samples[: int(0.6 * RATE)] * level)
        assert len(piece.samples) > 0.4 * RATE


def test_times_at_8_khz() -> None:
    clip = load_audio(SAMPLES / "telephone_8khz.flac")
    silence = np.zeros(8000 * 3, np.float32)
    pieces = heard(np.concatenate((silence, clip.samples, silence, clip.samples)), 8000)
    assert [piece.sampling_rate for piece in pieces] == [8000, 8000]
    assert pieces[1].start - pieces[0].start == pytest.approx(3 + clip.duration, abs=0.07)
    assert 3 <= pieces[0].start < 3.3


def test_streaming_resamples_as_the_whole_does(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (44100 * 7, 2)).astype(np.float32)
    file = tmp_path / "noise.wav"
    soundfile.write(file, samples, 44100, subtype="FLOAT")
    parts = list(stream_audio(file))
    assert len(parts) > 2
    assert {part.sampling_rate for part in parts} == {RATE}
    streamed = np.concatenate([part.samples for part in parts])
    import soxr

    whole = soxr.resample(samples.mean(axis=1), 44100, RATE, quality="HQ")
    assert len(streamed) == len(whole)
    assert np.abs(streamed - whole).max() < 1e-3
    left = np.concatenate([part.samples for part in stream_audio(file, channel=0)])
    assert np.abs(left - streamed).max() > 0.01

"""Live audio to turns, and what may be shown of a turn before its end."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.serve.turns import Agreement, Started, Stopped, TurnBuffer, TurnOptions
from tests.serve.conftest import SAMPLES


def speech(name: str = "eight_digits.flac") -> np.ndarray:
    samples, rate = soundfile.read(SAMPLES / name, dtype="float32")
    assert rate == 16000
    return samples


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(16000 * seconds), np.float32)


def pushed(buffer: TurnBuffer, samples: np.ndarray, size: int = 1600) -> list[Started | Stopped]:
    return [one for at in range(0, len(samples), size) for one in buffer.push(samples[at : at + size])]


@pytest.mark.parametrize("size", [160, 1600, 100_000])
def test_a_turn_is_its_speech_with_what_is_around_it(size: int) -> None:
    clip = speech("three_digits.flac")
    audio = np.concatenate((silence(2), clip, silence(2), clip, silence(2)))
    buffer = TurnBuffer(TurnOptions())
    first, second, third, fourth = pushed(buffer, audio, size)
    assert isinstance(first, Started)
    assert isinstance(second, Stopped)
    assert isinstance(third, Started)
    assert isinstance(fourth, Stopped)
    assert 1.5 <= first.seconds <= 2.5
    assert second.seconds < 2 + len(clip) / 16000 + 1
    begin = round(first.seconds * 16000)
    np.testing.assert_array_equal(second.samples, audio[begin : round(second.seconds * 16000)])
    assert third.seconds == pytest.approx(first.seconds + 2 + len(clip) / 16000, abs=0.1)
    assert buffer.seconds < 1


def test_silence_and_a_single_click_start_nothing() -> None:
    audio = silence(3)
    audio[20_000:20_010] = 0.9
    buffer = TurnBuffer(TurnOptions())
    assert pushed(buffer, audio) == []
    assert buffer.seconds < 0.5


def test_a_turn_that_is_too_long_is_cut_and_goes_on() -> None:
    audio = np.concatenate([speech()] * 3)
    found = pushed(TurnBuffer(TurnOptions(silence_seconds=5.0, max_seconds=4.0)), audio)
    stops = [one for one in found if isinstance(one, Stopped)]
    starts = [one for one in found if isinstance(one, Started)]
    assert len(stops) >= 2
    assert all(len(one.samples) <= 4.1 * 16000 for one in stops)
    assert [one.seconds for one in stops[:-1]] == [one.seconds for one in starts[1 : len(stops)]]


def test_without_detection_all_is_held_until_it_is_committed() -> None:
    audio = np.concatenate((silence(1), speech()))
    buffer = TurnBuffer(None)
    assert pushed(buffer, audio) == []
    np.testing.assert_array_equal(buffer.samples, audio)
    np.testing.assert_array_equal(buffer.commit().samples, audio)
    assert buffer.seconds == 0
    pushed(buffer, audio)
    buffer.clear()
    assert buffer.seconds == 0


def test_what_two_decodings_agree_on_is_shown() -> None:
    agreement = Agreement()
    shown = [agreement.push(text) for text in ("two for", "two four si", "two four six", "two four six eight")]
    assert shown == ["", "two", " four", " six"]
    assert agreement.finish("two four six eight nine") == " eight nine"
    assert Agreement().finish("all at once") == "all at once"


def test_a_text_that_changes_is_not_gone_on_with() -> None:
    agreement = Agreement()
    agreement.push("one two three")
    assert agreement.push("one two three") == "one two"
    assert agreement.finish("nine two three") == ""


@given(st.lists(st.text(alphabet="ab 中", max_size=8), max_size=6), st.text(alphabet="ab 中", max_size=8))
def test_what_is_shown_is_the_start_of_some_decoding(texts: list[str], last: str) -> None:
    agreement = Agreement()
    parts = [agreement.push(text) for text in texts]
    assert agreement.shown == "".join(parts)
    assert not agreement.shown or any(text.startswith(agreement.shown) for text in texts)
    more = agreement.finish(last)
    assert not more or agreement.shown == last

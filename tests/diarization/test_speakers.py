"""Which speaker says what."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.diarization.speakers import Diarization, SpeakerTurn, label
from phi4mm.transcript import Segment, Word

TURNS = [SpeakerTurn(5.0, 9.0, "x"), SpeakerTurn(0.0, 4.0, "y"), SpeakerTurn(10.0, 12.0, "y")]
VOICES = {"x": np.array([1.0, 0.0]), "y": np.array([0.0, 1.0])}


def test_speakers_are_called_in_their_order() -> None:
    found = Diarization.of(TURNS, VOICES)
    assert [(turn.start, turn.speaker) for turn in found.turns] == [(0.0, "A"), (5.0, "B"), (10.0, "A")]
    assert found.voices["B"] is VOICES["x"]
    assert [label(number) for number in (0, 25, 26, 701, 702)] == ["A", "Z", "AA", "ZZ", "AAA"]


def test_a_segment_is_divided_at_its_words() -> None:
    words = tuple(Word(text, start, start + 0.5) for text, start in (("a", 3.0), ("b", 3.6), ("c", 4.4), ("d", 5.2)))
    found = Diarization.of(TURNS, VOICES).attributed(Segment(2.9, 6.0, "a b  c d", words=words))
    assert [(one.speaker, one.text, one.start, one.end) for one in found] == [
        ("A", "a b", 2.9, 4.1),
        ("B", "c d", 4.4, 6.0),
    ]
    assert [len(one.words or ()) for one in found] == [2, 2]


def test_without_words_it_is_who_speaks_most_or_nearest() -> None:
    diarization = Diarization.of(TURNS, VOICES)
    assert [one.speaker for one in diarization.attributed(Segment(3.5, 8.0, "a b"))] == ["B"]
    assert [one.speaker for one in diarization.attributed(Segment(20.0, 21.0, "a"))] == ["A"]
    assert [one.speaker for one in Diarization().attributed(Segment(1.0, 2.0, "a"))] == ["A"]


def test_known_voices_have_names() -> None:
    diarization = Diarization.of(TURNS, VOICES)
    known = {"Ann": np.array([0.9, 0.1]), "Bob": np.array([0.8, 0.3])}
    named = diarization.named(known)
    assert [turn.speaker for turn in named.turns] == ["A", "Ann", "A"]
    assert diarization.named({}) == diarization
    voice = diarization.main_voice()
    assert voice is not None
    assert np.array_equal(voice, VOICES["y"])
    assert Diarization().main_voice() is None


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3), st.sampled_from("xyz")), max_size=6), st.integers(1, 8))
def test_no_word_is_lost(turns: list[tuple[float, float, str]], count: int) -> None:
    diarization = Diarization.of([SpeakerTurn(start, start + size, name) for start, size, name in turns], {})
    words = tuple(Word(f"w{number}", number, number + 0.9) for number in range(count))
    segment = Segment(0.0, float(count), " ".join(word.text for word in words), words=words)
    parts = diarization.attributed(segment)
    assert [word for part in parts for word in part.words or ()] == list(words)
    assert (parts[0].start, parts[-1].end) == (segment.start, segment.end)
    assert all(before.speaker != after.speaker for before, after in pairwise(parts))

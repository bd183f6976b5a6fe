"""Word time stamps: on attention and loudness that are made up, and on the bundled checkpoint and real joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phi4mm import Phi4MM, PromptError, Transcript
from phi4mm.inputs.audio import load_audio
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.transcription.alignment import _centres, _edges, _within, _words
from phi4mm.types import Segment, Word

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
RATE = 16000


def test_words_and_their_tokens(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file)
    text = " naïve  words\n größer 12 end"
    token_ids = tokenizer.encode(text)
    texts, tokens = _words(token_ids, tokenizer)
    assert texts == text.split()
    for word, (first, last) in zip(texts, tokens, strict=True):
        assert word in tokenizer.decode(token_ids[first : last + 1])
        assert word not in tokenizer.decode(token_ids[first + 1 : last + 1])
    assert _words([], tokenizer) == ([], [])


def test_centres_follow_the_heads_that_point_onward() -> None:
    wanted = [3, 9, 9, 14]
    pointing = torch.full((4, 20), 0.01)
    pointing[range(4), wanted] = 0.8
    pointing[2, 10] = 0.9
    backward, flat = pointing.flip(0), torch.full((4, 20), 0.05)
    centres = _centres(torch.stack([flat, pointing, backward, pointing, pointing, flat, pointing]))
    assert centres is not None
    assert centres == pytest.approx([3, 9, 10, 14], abs=0.6)
    assert _centres(torch.rand(2, 5, 4)) is None  # more tokens than audio


def test_a_word_ends_where_the_pause_begins() -> None:
    random = np.random.default_rng(0)
    samples = random.normal(0, 1e-4, 2 * RATE).astype(np.float32)
    for start, end in ((0.2, 0.6), (0.9, 1.3), (1.3, 1.7)):
        samples[int(start * RATE) : int(end * RATE)] += 0.1 * np.sin(np.arange(round((end - start) * RATE)) / 5)
    samples[int(1.29 * RATE) : int(1.31 * RATE)] *= 0.1  # too short for a pause
    edges = _edges(samples, RATE, [(0.4, 0.4), (1.0, 1.1), (1.5, 1.5)])
    assert np.ravel(edges) == pytest.approx([0.2, 0.6, 0.9, 1.3, 1.3, 1.7], abs=0.03)


def test_steady_noise_has_no_pauses_but_words_do_not_overlap() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    edges = np.ravel(_edges(samples, RATE, [(0.2, 0.2), (0.5, 0.6), (5.0, 5.0)]))
    assert (np.diff(edges) >= 0).all()
    assert 0 <= edges[0] <= 0.2
    assert edges[-1] <= 1.0


@given(
    edges=st.lists(st.integers(0, 40), min_size=2, max_size=20).map(sorted),
    speech=st.tuples(st.integers(0, 40), st.integers(1, 20)),
)
def test_words_lie_within_their_speech(edges: list[int], speech: tuple[int, int]) -> None:
    begin, end = speech[0] / 10, sum(speech) / 10
    times = [(first / 10, last / 10) for first, last in zip(edges[::2], edges[1::2], strict=False)]
    within = _within(times, begin, end)
    assert len(within) == len(times)
    flat = np.ravel(within)
    assert (np.diff(flat) >= -1e-9).all()
    assert flat[0] >= begin
    assert flat[-1] <= end + 1e-9
    if begin < np.max(times) and np.min(times) < end and np.ptp(np.clip(times, begin, end)):
        assert all(first < last for first, last in within)


def test_words_of_joined_clips_are_found(bundled: Phi4MM) -> None:
    """The clip's words begin where its copy was put; the bundled checkpoint, whole and in pieces."""
    clip = load_audio(SAMPLES / "telephone.flac").samples
    [segment] = bundled.transcribe((clip, RATE), word_timestamps=True).segments
    assert segment.words is not None
    assert [word.text for word in segment.words] == segment.text.split()
    joined = np.concatenate((np.zeros(8000, np.float32), clip, np.zeros(24000, np.float32), clip))
    transcript = bundled.transcribe((joined, RATE), word_timestamps=True)
    found = [word for segment in transcript.segments for word in segment.words or ()]
    assert [word.text for word in found] == 2 * segment.text.split()
    starts = [word.start + shift for shift in (0.5, 2.0 + len(clip) / RATE) for word in segment.words]
    errors = np.abs([word.start - start for word, start in zip(found, starts, strict=True)])
    assert np.median(errors) < 0.05
    assert errors.max() < 0.3
    for one in transcript.segments:
        assert one.words is not None
        assert all(one.start <= word.start < word.end <= one.end for word in one.words)
    assert Transcript.from_dict(transcript.to_dict()) == transcript
    assert all(segment.words is None for segment in bundled.transcribe((clip, RATE)).segments)


@pytest.mark.parametrize("option", [{"task": "summarize"}, {"task": "translate", "to": "German"}])
def test_only_transcripts_have_words(tiny: Phi4MM, option: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="word_timestamps"):
        tiny.transcribe((np.zeros(RATE, np.float32), RATE), word_timestamps=True, **option)


def test_words_survive_a_dictionary() -> None:
    transcript = Transcript.of([Segment(0.0, 1.0, "a b", words=(Word("a", 0.0, 0.4), Word("b", 0.5, 1.0)))], 1.0)
    assert Transcript.from_dict(transcript.to_dict()) == transcript

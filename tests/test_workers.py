"""Batches shared out to processes: the same results in the same order, and errors that cost only themselves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from phi4mm import BatchError, CheckpointError, Phi4MM, Phi4MMError, PromptError, Request, Workers
from phi4mm.workers import MOST_AT_ONCE, equal_parts

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
CLIPS = sorted(SAMPLES.glob("*.flac"))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(processes=2) as made:
        yield made


def test_results_are_those_of_the_model_in_the_order_of_the_inputs(workers: Workers) -> None:
    model = Phi4MM.from_pretrained(device="cpu")
    assert workers.transcribe_batch(CLIPS) == model.transcribe_batch(CLIPS)
    picture = SAMPLES / "shape.png"
    requests = [Request("what comes after three?"), {"text": "what shape is in the image?", "images": [picture]}]
    assert [reply.text for reply in workers.chat_batch(requests)] == [
        reply.text for reply in model.chat_batch(requests)
    ]


def test_samples_and_bytes_are_handed_over(workers: Workers) -> None:
    samples, rate = soundfile.read(CLIPS[0], dtype="float32")
    from_samples, from_bytes, from_path = workers.transcribe_batch([(samples, rate), CLIPS[0].read_bytes(), CLIPS[0]])
    assert from_samples == from_bytes == from_path
    assert workers.transcribe_batch([]) == []


def test_a_bad_input_costs_only_itself(workers: Workers) -> None:
    with pytest.raises(BatchError) as caught:
        workers.transcribe_batch([b"<html>", CLIPS[0], CLIPS[1], SAMPLES / "absent.wav"])
    assert sorted(caught.value.errors) == [0, 3]
    assert "absent.wav" in str(caught.value.errors[3])
    assert [result is None for result in caught.value.results] == [True, False, False, True]


def test_a_bad_option_is_one_error_and_the_workers_go_on(workers: Workers) -> None:
    with pytest.raises(PromptError, match="batch_size is 0"):
        workers.transcribe_batch(CLIPS, batch_size=0)
    assert workers.transcribe_batch(CLIPS[:1])[0].text


def test_what_cannot_be_handed_over_costs_only_itself(workers: Workers) -> None:
    with CLIPS[0].open("rb") as file:
        with pytest.raises(BatchError, match=r"request 1: cannot be handed to another process .*pass a path") as caught:
            workers.transcribe_batch([CLIPS[0], file, CLIPS[1]])
        with pytest.raises(BatchError, match="request 0"):
            workers.chat_batch([{"text": "What is said?", "audios": [file]}])
    first, none, second = caught.value.results
    assert first.text
    assert second.text
    assert none is None
    assert sorted(caught.value.errors) == [1]


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        Workers(tmp_path / "absent", processes=1)
    with pytest.raises(Phi4MMError, match="processes is 0"):
        Workers(processes=0)


def test_a_process_that_was_killed_is_told() -> None:
    with Workers(processes=2) as made:
        os.kill(made.process_ids[0], signal.SIGKILL)
        with pytest.raises(Phi4MMError, match="ended with code -9"):
            made.transcribe_batch(CLIPS)
        with pytest.raises(Phi4MMError, match="closed"):
            made.transcribe_batch(CLIPS[:1])


@given(st.lists(st.integers(0, 1000), max_size=400), st.integers(1, 5))
def test_parts_hold_everything_once_and_are_of_like_size(sizes: list[int], processes: int) -> None:
    parts = equal_parts(sizes, processes)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(0 < len(part) <= MOST_AT_ONCE for part in parts)
    assert len(parts) % processes == 0 or len(parts) == len(sizes)
    totals = [sum(sizes[index] for index in part) for part in parts]
    assert not parts or max(totals) - min(totals) <= max(sizes)

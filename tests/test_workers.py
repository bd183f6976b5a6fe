"""Batches shared out to processes: each call gets its own rows in their order, and errors cost only themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from phi4mm import BatchError, CheckpointError, ClosedError, Phi4MM, Phi4MMError, PromptError, Request, Workers
from phi4mm.workers import MOST_AT_ONCE, equal_parts

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
CLIPS = sorted(SAMPLES.glob("*.flac"))


class ReadableHereOnly:
    """An input that can be pickled, but not read by a process that lacks the attribute."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.listdir, ("/absent folder",)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(processes=2) as made:
        yield made


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """What the model itself transcribes of each clip."""
    return [transcript.text for transcript in Phi4MM.from_pretrained(device="cpu").transcribe_batch(CLIPS)]


def test_results_are_those_of_the_model_in_the_order_of_the_inputs(workers: Workers) -> None:
    model = Phi4MM.from_pretrained(device="cpu")
    assert workers.transcribe_batch(CLIPS) == model.transcribe_batch(CLIPS)
    picture = SAMPLES / "shape.png"
    requests: list[Request | dict[str, Any]] = [
        Request("what comes after three?"),
        {"text": "what shape is in the image?", "images": [picture]},
    ]
    assert [reply.text for reply in workers.chat_batch(requests)] == [
        reply.text for reply in model.chat_batch(requests)
    ]


def test_samples_and_bytes_are_handed_over(workers: Workers) -> None:
    samples, rate = soundfile.read(CLIPS[0], dtype="float32")
    from_samples, from_bytes, from_path = workers.transcribe_batch([(samples, rate), CLIPS[0].read_bytes(), CLIPS[0]])
    assert from_samples == from_bytes == from_path
    assert workers.transcribe_batch([]) == []


def test_calls_from_several_threads_get_their_own_rows(workers: Workers, texts: list[str]) -> None:
    def transcribe(caller: int) -> list[list[str]]:
        clips = [CLIPS[caller % len(CLIPS)], CLIPS[(caller + 1) % len(CLIPS)]]
        return [[transcript.text for transcript in workers.transcribe_batch(clips)] for _ in range(3)]

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(transcribe, range(4)))
    expected = [[texts[caller % len(texts)], texts[(caller + 1) % len(texts)]] for caller in range(4)]
    assert found == [[rows] * 3 for rows in expected]


def test_a_bad_call_beside_a_good_one_fails_alone(workers: Workers, texts: list[str]) -> None:
    with ThreadPoolExecutor(3) as callers:
        good = callers.submit(workers.transcribe_batch, CLIPS)
        bad_option = callers.submit(workers.transcribe_batch, CLIPS, batch_size=0)
        bad_clip = callers.submit(workers.transcribe_batch, [CLIPS[0], b"<html>"])
        assert [transcript.text for transcript in good.result()] == texts
        with pytest.raises(PromptError, match="batch_size is 0"):
            bad_option.result()
        with pytest.raises(BatchError) as caught:
            bad_clip.result()
    assert sorted(caught.value.errors) == [1]
    assert caught.value.results[0].text == texts[0]


def test_a_bad_input_costs_only_itself(workers: Workers) -> None:
    with pytest.raises(BatchError) as caught:
        workers.transcribe_batch([b"<html>", CLIPS[0], CLIPS[1], SAMPLES / "absent.wav"])
    assert sorted(caught.value.errors) == [0, 3]
    assert "absent.wav" in str(caught.value.errors[3])
    assert [result is None for result in caught.value.results] == [True, False, False, True]


def test_a_bad_option_is_one_error_and_the_workers_go_on(workers: Workers) -> None:
    with pytest.raises(PromptError, match="batch_size is 0"):
        workers.transcribe_batch(CLIPS, batch_size=0)
    with pytest.raises(PromptError, match="colour"):
        workers.transcribe_batch(CLIPS, colour="blue")
    with pytest.raises(Phi4MMError, match="cannot be handed to another process"):
        workers.transcribe_batch(CLIPS, prompt=lambda: "What?")
    assert workers.transcribe_batch(CLIPS[:1])[0].text


def test_what_cannot_be_handed_over_costs_only_itself(workers: Workers, texts: list[str]) -> None:
    with CLIPS[0].open("rb") as file:
        with pytest.raises(BatchError, match=r"request 1: cannot be handed to another process .*pass a path") as caught:
            workers.transcribe_batch([CLIPS[0], file, CLIPS[1], ReadableHereOnly()])
        with pytest.raises(BatchError, match="request 0"):
            workers.chat_batch([{"text": "What is said?", "audios": [file]}])
    first, none, second, unread = caught.value.results
    assert [first.text, none, second.text, unread] == [texts[0], None, texts[1], None]
    assert sorted(caught.value.errors) == [1, 3]
    assert "cannot be read in another process" in str(caught.value.errors[3])


def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(CheckpointError, match="absent"):
        Workers(tmp_path / "absent", processes=2)
    for processes in (0, -1, "2", 1.5, True):
        with pytest.raises(Phi4MMError, match=f"processes is {processes!r}; expected a whole number, 1 or more"):
            Workers(processes=processes)  # type: ignore[arg-type]
    assert set(multiprocessing.active_children()) == before


NOISE = (np.random.default_rng(0).normal(0, 0.1, 20 * 16000).astype("float32"), 16000)


def test_a_process_that_is_killed_is_replaced_and_loses_nothing(
    texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with Workers(processes=2) as made, ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(made.transcribe_batch, [NOISE] * 20 + CLIPS) for _ in range(2)]
        time.sleep(1)
        killed, other = made.process_ids
        os.kill(killed, signal.SIGKILL)
        for call in calls:
            assert [transcript.text for transcript in call.result()[20:]] == texts
        assert other in made.process_ids
        os.kill(other, signal.SIGTERM)  # while it is idle
        assert [transcript.text for transcript in made.transcribe_batch(CLIPS)] == texts
        assert not {killed, other} & set(made.process_ids)
    assert "Traceback" not in capfd.readouterr().err


class EndsItsProcess:
    """An input that ends the process in which it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os._exit, (3,)


def test_an_input_that_ends_its_process_fails_alone(texts: list[str]) -> None:
    with Workers(processes=1) as made:
        with pytest.raises(BatchError, match="request 1: a worker process ended with code 3 with this input") as caught:
            made.transcribe_batch([CLIPS[0], EndsItsProcess(), CLIPS[1]])
        first, none, second = caught.value.results
        assert [first.text, none, second.text] == [texts[0], None, texts[1]]
        assert made.transcribe_batch(CLIPS[:1])[0].text == texts[0]


def test_closing_ends_running_calls_with_one_error_each() -> None:
    made = Workers(processes=1)
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(made.transcribe_batch, [NOISE] * 300) for _ in range(2)]
        time.sleep(1)
        made.close()
        assert [type(call.exception()) for call in calls] == [ClosedError, ClosedError]
    made.close()
    with pytest.raises(ClosedError, match="make new ones"):
        made.transcribe_batch(CLIPS[:1])
    assert made.process_ids == []


def test_a_program_without_a_guard_is_told_so(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from phi4mm import Workers\nWorkers(processes=2)\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__"' in ended.stderr.splitlines()[-1]


def test_a_program_that_is_killed_leaves_no_processes() -> None:
    code = "from phi4mm import Workers; import time; w = Workers(processes=1); print(*w.process_ids, flush=True); "
    program = subprocess.Popen(
        [sys.executable, "-c", code + "time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert program.stdout is not None
    process_id = int(program.stdout.readline())
    program.kill()
    program.wait()
    ended = threading.Event()
    deadline = time.monotonic() + 20
    while not ended.wait(0.1):
        assert time.monotonic() < deadline
        if not Path(f"/proc/{process_id}").exists() or "Z" in Path(f"/proc/{process_id}/stat").read_text().split()[2]:
            ended.set()


@given(st.lists(st.integers(0, 1000), max_size=400), st.integers(1, 5))
def test_parts_hold_everything_once_and_are_of_like_size(sizes: list[int], processes: int) -> None:
    parts = equal_parts(sizes, processes)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(0 < len(part) <= MOST_AT_ONCE for part in parts)
    assert len(parts) % processes == 0 or len(parts) == len(sizes)
    totals = [sum(sizes[index] for index in part) for part in parts]
    assert not parts or max(totals) - min(totals) <= max(sizes)

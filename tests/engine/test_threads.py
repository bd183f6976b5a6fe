"""One model used by many threads, closed at any time, dropped, and left running at the program's end."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi4mm import Phi4MM
from phi4mm.engine.options import EngineOptions
from phi4mm.errors import ClosedError
from phi4mm.model.phi4mm import Phi4MMModel
from tests.engine.brake import Brake, held_bytes, num_rows
from tests.media import picture, speech

NUM_THREADS = 32
SECONDS = float(os.environ.get("PHI4MM_STRESS_SECONDS", "3"))
CLIPS = [speech(0.3 + 0.2 * number, number) for number in range(3)]
WHOLE = {"vad": False, "temperature_increment": 0}
REQUESTS: list[dict[str, Any]] = [
    {"text": "Hello", "max_new_tokens": 12},
    {"text": "Describe", "images": [picture(60, 40)], "max_new_tokens": 8},
    {"text": "Write", "audios": [CLIPS[0]], "max_new_tokens": 8, "temperature": 1.0, "seed": 3},
    {"text": "Both", "images": [picture(60, 40)], "audios": [CLIPS[1]], "max_new_tokens": 5},
]
CALLS: dict[str, Callable[[Phi4MM], Any]] = {
    **{f"chat {n}": lambda model, one=one: model.chat(**one) for n, one in enumerate(REQUESTS)},
    **{f"stream {n}": lambda model, one=one: "".join(model.stream(**one)) for n, one in enumerate(REQUESTS)},
    "stop midway": lambda model: next(model.stream("Hello", max_new_tokens=60)),
    "several": lambda model: [
        other.text for other in model.chat("Hello", n=3, temperature=1.5, seed=1, max_new_tokens=6).alternatives
    ],
    "chat_batch": lambda model: model.chat_batch(REQUESTS, batch_size=2),
    "transcribe": lambda model: model.transcribe(speech(2.5), max_piece=1.0, max_new_tokens=6, **WHOLE).text,
    "transcribe_batch": lambda model: model.transcribe_batch(CLIPS, max_new_tokens=6),
    "transcribe_stream": lambda model: next(model.transcribe_stream(CLIPS[2], max_new_tokens=6, **WHOLE)).text,
}


@pytest.fixture
def model(tiny_model: Phi4MMModel, tokenizer_file: Path) -> Any:
    """With little memory, so that rows wait for each other."""
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=1024, max_rows=6)) as model:
        yield model


def in_threads(work: Callable[[int], None]) -> None:
    """Run ``work`` of each thread's number, and raise what one of them raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_calls_of_many_threads_give_what_they_give_one_by_one(model: Phi4MM) -> None:
    expected = {name: call(model) for name, call in CALLS.items()}
    end = time.monotonic() + SECONDS

    def work(number: int) -> None:
        chooser = random.Random(number)
        while time.monotonic() < end:
            name = chooser.choice(list(CALLS))
            assert CALLS[name](model) == expected[name], name

    in_threads(work)
    assert num_rows(model) == 0
    assert held_bytes(model) == 0
    assert sum(model._client._users._counts.values()) == 0
    model._client.engine.call(lambda core: core.scheduler.drop_prefixes())
    assert model._client.engine.call(lambda core: core.scheduler.arena.num_used) == 0


@pytest.mark.parametrize("after", [0.0, 0.01, 0.2])
def test_closing_gives_each_caller_one_error(model: Phi4MM, after: float) -> None:
    closed, lock = 0, threading.Lock()

    def work(number: int) -> None:
        nonlocal closed
        chooser = random.Random(number)

        def call_on_and_on() -> None:
            while True:
                CALLS[chooser.choice(list(CALLS))](model)

        with pytest.raises(ClosedError, match="the model is closed"):
            call_on_and_on()
        with lock:
            closed += 1

    closer = threading.Timer(after, model.close)
    closer.start()
    in_threads(work)
    assert closed == NUM_THREADS
    closer.join()
    model.close()


def test_after_closing_every_call_is_refused(model: Phi4MM) -> None:
    with Brake(at=1) as brake:
        running = model.submit({"text": "x", "audios": [CLIPS[0]], "processors": [brake]})
        waiting = model.submit({"text": "x", "images": [picture(9, 9)]})
        assert brake.reached.wait(20)
        closer = threading.Thread(target=model.close)
        closer.start()
    for handle in (running, waiting):
        with pytest.raises(ClosedError):
            handle.result(20)
        handle.cancel()
    closer.join(20)
    model.close()
    for call in (
        *CALLS.values(),
        lambda model: model.submit(REQUESTS[0]),
        lambda model: model.submit(REQUESTS[1]),
        lambda model: model.adapters.unload("speech"),
        lambda model: model.unmerge(),
    ):
        with pytest.raises(ClosedError, match="load it again"):
            call(model)


def test_a_model_that_was_never_used_is_closed(tiny_model: Phi4MMModel, tokenizer_file: Path) -> None:
    before = threading.active_count()
    with Phi4MM(tiny_model, tokenizer_file) as model:
        assert threading.active_count() == before
    with pytest.raises(ClosedError):
        model.chat("x")


def test_a_cache_that_cannot_be_made_is_the_error_of_each_call(tiny_model: Phi4MMModel, tokenizer_file: Path) -> None:
    def make_runner(*_: object) -> Any:
        raise MemoryError("no room for the cache")

    with Phi4MM(tiny_model, tokenizer_file, make_runner=make_runner) as model:
        for _ in range(2):
            with pytest.raises(ClosedError, match="no room for the cache"):
                model.chat("x")


def test_a_dropped_model_ends_its_threads_once_its_handles_are_done(
    tiny_model: Phi4MMModel, tokenizer_file: Path
) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    model = Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=1024))
    expected = model.chat(**REQUESTS[1])
    handle, pieces = model.submit(REQUESTS[1]), model.stream("Hello", max_new_tokens=12)
    started = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert {thread.name for thread in started} >= {"phi4mm-engine", "phi4mm-read-0"}
    del model
    assert handle.result(20) == expected
    assert "".join(pieces)
    del handle, pieces
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_stream_of_a_model_that_nobody_holds(tiny_model: Phi4MMModel, tokenizer_file: Path) -> None:
    options = EngineOptions(cache_tokens=1024)
    pieces = Phi4MM(tiny_model, tokenizer_file, options=options).stream("Hello", max_new_tokens=12)
    assert "".join(pieces)
    [segment] = Phi4MM(tiny_model, tokenizer_file, options=options).transcribe_stream(CLIPS[0], **WHOLE)
    assert segment.text


ENDS = """
import sys, threading, time
from phi4mm import Phi4MM

model = Phi4MM.from_pretrained(device="cpu")
clip = "assets/samples/telephone.flac"
expected = model.transcribe(clip).text
"""
RUNNING = """
handles = [model.submit({"text": "Hi", "max_new_tokens": 400}) for _ in range(4)]
handles += [model.submit({"audios": [clip], "max_new_tokens": 400}) for _ in range(40)]
next(iter(handles[0]))
stream = model.transcribe_stream(clip)
print("end")
"""
OUTLIVED = """
def work():
    threading.main_thread().join()
    time.sleep(0.2)
    assert model.transcribe(clip).text == expected
    assert [one.text for one in model.transcribe_batch([clip] * 9)] == [expected] * 9
    print("end", flush=True)

threading.Thread(target=work).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [RUNNING, OUTLIVED], ids=["rows are running", "threads outlive the main thread"])
def test_the_program_ends_cleanly(code: str) -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ENDS + code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert time.monotonic() - start < 100

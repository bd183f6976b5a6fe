"""Media are read ahead of the engine within a bound of bytes, and their features are dropped once encoded."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from phi4mm import Phi4MM, Phi4MMError, PromptError
from phi4mm.engine.intake import Intake
from phi4mm.engine.options import EngineOptions
from phi4mm.inputs.processor import Row
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request
from tests.engine.brake import Brake, held_bytes, num_rows
from tests.media import speech


@pytest.fixture
def watched(tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """The features that the processor makes, while they live."""
    seen: list[weakref.ref[Any]] = []
    row = tiny.processor.row

    def watch(request: Request) -> Row:
        made = row(request)
        seen.extend(weakref.ref(medium.features) for medium in made.media)
        return made

    monkeypatch.setattr(tiny.processor, "row", watch)
    return seen


def test_reading_ahead_is_bounded_in_order_and_loses_nothing() -> None:
    intake = Intake(max_bytes=100)
    num_threads = 4  # at most: each may be reading when the bound is reached
    order: list[int] = []
    most, done = 0, threading.Semaphore(0)

    def job(number: int) -> Callable[[], int]:
        def read() -> int:
            nonlocal most
            order.append(number)
            most = max(most, intake.held_bytes)
            done.release()
            return 30

        return read

    for number in range(50):
        intake.submit(job(number), refused=lambda: pytest.fail("refused"))
    for number in range(50):
        assert done.acquire(timeout=10)
        if number >= 2:  # two items stay held for ever
            intake.release(30)
    intake.close()
    intake.join()
    assert sorted(order) == list(range(50))
    assert order[0] == 0
    assert intake.held_bytes == 60
    assert most <= 100 + 30 * num_threads


def test_a_closed_intake_refuses_what_was_not_begun_and_what_comes() -> None:
    intake, begun, go, refused = Intake(1), threading.Event(), threading.Event(), []

    def read() -> int:
        begun.set()
        assert go.wait(10)
        return 5

    intake.submit(read, lambda: pytest.fail("it was begun"))
    assert begun.wait(10)
    intake.release(-1)  # the bound is reached
    intake.submit(lambda: pytest.fail("closed"), lambda: refused.append(1))
    intake.close()
    intake.submit(lambda: pytest.fail("closed"), lambda: refused.append(2))
    assert refused == [1, 2]
    go.set()
    intake.join()


def num_alive(watched: list[weakref.ref[Any]]) -> int:
    gc.collect()
    return sum(features() is not None for features in watched)


def settles(condition: Callable[[], bool]) -> bool:
    """Whether it comes true: a thread that has just read a request holds it until the call returns."""
    end = time.monotonic() + 10.0
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_features_are_dropped_once_encoded(tiny: Phi4MM, watched: list[weakref.ref[Any]]) -> None:
    with Brake(at=1) as brake:  # the prompt is computed, the reply is not there
        calls = [
            tiny.submit({"audios": [speech(0.4, 91), speech(0.5, 92)], "max_new_tokens": 4, "processors": [brake]}),
            tiny.submit({"audios": [speech(0.6, 93)], "max_new_tokens": 4, "processors": [brake], "n": 2}),
        ]
        assert brake.reached.wait(20)
        assert settles(lambda: num_alive(watched) <= 2)  # of the request that is not encoded yet
    assert [call.result(20).finish_reason for call in calls] == ["length", "length"]
    assert len(watched) == 3
    assert settles(lambda: num_alive(watched) == 0)
    assert held_bytes(tiny) == 0


def test_nothing_is_held_of_what_never_ran(tiny: Phi4MM, watched: list[weakref.ref[Any]]) -> None:
    """Cancelled before or after it was read, refused by the engine, or bad."""
    with Brake() as brake:
        tiny_call = tiny.submit({"text": "x", "processors": [brake]})
        assert brake.reached.wait(20)
        read = tiny.submit({"audios": [speech(0.5, 94)]})
        while not watched:
            threading.Event().wait(0.001)
        others = [tiny.submit({"audios": [speech(0.5, 95 + number)]}) for number in range(20)]
        for call in (read, *others, tiny_call):
            call.cancel()
    with pytest.raises(Phi4MMError):
        tiny.submit({"audios": [speech(0.5, 96), b"bad"]}).result(20)
    with pytest.raises(PromptError, match="logit_bias"):
        tiny.submit({"audios": [speech(0.5, 97)], "logit_bias": {5000: 1.0}}).result(20)
    assert num_rows(tiny) == 0
    assert held_bytes(tiny) == 0
    gc.collect()
    assert not any(features() is not None for features in watched)


def test_few_bytes_may_be_held_and_all_is_answered(tiny_model: Phi4MMModel, tokenizer_file: Any) -> None:
    requests = [{"audios": [speech(0.3 + 0.1 * (number % 5), number)], "max_new_tokens": 3} for number in range(20)]
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=4096, read_ahead_bytes=1)) as model:
        few = model.chat_batch(requests, batch_size=4)
        assert held_bytes(model) == 0
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=4096)) as model:
        assert model.chat_batch(requests) == few

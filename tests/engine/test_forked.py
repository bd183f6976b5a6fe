"""A process that was forked after loading gets an error where it would wait for ever."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest

from phi4mm import ClosedError, Phi4MM
from tests.media import speech


def _ask(model: Phi4MM, connection: Connection) -> None:
    calls = (
        lambda: model.chat("hello"),
        lambda: list(model.stream("hello")),
        lambda: model.chat_batch([{"text": "hello"}]),
        lambda: model.transcribe(speech(1.0), vad=False),
        lambda: model.transcribe_batch([speech(1.0)]),
        lambda: model.close(),
    )
    for call in calls:
        try:
            connection.send(call())
        except ClosedError as error:
            connection.send(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_load_its_own_model(tiny: Phi4MM) -> None:
    tiny.chat("hello", max_new_tokens=1)  # the engine's thread runs
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_ask, args=(tiny, theirs))
    process.start()
    answers = []
    for _ in range(6):
        assert ours.poll(20), "it waits"
        answers.append(ours.recv())
    process.join(20)
    assert process.exitcode == 0
    *errors, closed = answers
    assert all("load it in this one" in error for error in errors)
    assert closed is None
    assert tiny.chat("hello", max_new_tokens=1).usage.new_tokens == 1

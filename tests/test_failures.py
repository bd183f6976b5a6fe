"""Faults in the middle of the work: each costs the requests that took part, and names what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from phi4mm import BatchError, Phi4MM, PromptError
from phi4mm.engine.core import EngineError
from phi4mm.engine.encoders import Encoders
from phi4mm.engine.runner import ModelRunner
from tests.engine.brake import Brake, held_bytes, num_rows
from tests.media import picture, speech

REQUESTS: list[dict[str, Any]] = [
    {"text": "Hello", "max_new_tokens": 8},
    {"text": "What?", "images": [picture(44, 80)], "max_new_tokens": 8},
    {"text": "Write", "audios": [speech(0.6, 7)], "max_new_tokens": 8},
]


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception, at: int = 0) -> None:
    """Let a call of a method fail: the first, or a later one."""
    method, calls = getattr(owner, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at + 1:
            raise error
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def test_a_fault_of_a_decode_step_ends_its_rows_each_with_an_error(
    tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny.chat_batch(REQUESTS)
    with Brake(at=2) as brake:
        running = [tiny.submit({**REQUESTS[0], "processors": [brake]}), tiny.submit(REQUESTS[0])]
        assert brake.reached.wait(20)
        once(monkeypatch, ModelRunner, "decode", RuntimeError("a kernel failed\nat length"))
    errors = [handle.exception(20) for handle in running]
    assert all(isinstance(error, EngineError) for error in errors)
    assert errors[0] is not errors[1]
    assert all("RuntimeError: a kernel failed at length" in str(error) for error in errors)
    assert isinstance(errors[0].__cause__, RuntimeError)
    assert tiny.chat_batch(REQUESTS) == expected
    assert num_rows(tiny) == 0


@pytest.mark.parametrize(("owner", "name"), [(ModelRunner, "prefill"), (Encoders, "encode"), (ModelRunner, "decode")])
def test_where_memory_runs_out_less_is_done_at_a_time(
    tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    expected = tiny.chat_batch(REQUESTS)
    tiny._client.engine.call(lambda core: (core.scheduler.drop_prefixes(), core.embeddings.clear()))
    once(monkeypatch, owner, name, torch.OutOfMemoryError("out of memory"))
    assert tiny.chat_batch(REQUESTS) == expected


def test_a_fault_of_a_tower_or_a_reader_ends_its_request_alone(tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny.chat_batch(REQUESTS)
    tiny._client.engine.call(lambda core: (core.scheduler.drop_prefixes(), core.embeddings.clear()))
    once(monkeypatch, Encoders, "encode", RuntimeError("the tower fell"))
    with pytest.raises(BatchError, match="the tower fell") as caught:
        tiny.chat_batch(REQUESTS)
    assert len(caught.value.errors) == 1  # media of two kinds are encoded apart
    assert [a == b for a, b in zip(caught.value.results, expected, strict=True)].count(True) == 2
    row = tiny.processor.row
    monkeypatch.setattr(tiny.processor, "row", lambda request: 1 / 0 if request.images else row(request))
    with pytest.raises(BatchError, match=r"request 1: .*ZeroDivisionError.*please report") as caught:
        tiny.chat_batch(REQUESTS)
    assert caught.value.results == [expected[0], None, expected[2]]
    assert held_bytes(tiny) == 0


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny.chat_batch(REQUESTS)
    once(monkeypatch, type(tiny._client.engine.call(lambda core: core)), "step", RuntimeError("a bug"))
    handles = [tiny.submit(request) for request in REQUESTS]
    errors = [handle.exception(20) for handle in handles]
    assert any(error is not None and "the engine failed (RuntimeError: a bug)" in str(error) for error in errors)
    assert tiny.chat_batch(REQUESTS) == expected


def test_a_processor_that_waits_for_the_model_or_exits_ends_its_row_alone(tiny: Phi4MM) -> None:
    def waits(token_ids: Sequence[int], logits: Any) -> Any:
        tiny.chat("x")

    def exits(token_ids: Sequence[int], logits: Any) -> Any:
        raise SystemExit(3)

    for processor, expected in ((waits, "must not wait"), (exits, "SystemExit")):
        with pytest.raises(PromptError, match=expected):
            tiny.chat("Hi", processors=[processor])
        assert tiny.chat("Hi", max_new_tokens=2).usage.new_tokens == 2


def test_every_request_of_a_batch_has_its_own_number_of_replies(tiny: Phi4MM) -> None:
    request = {"text": "Hi", "temperature": 1.0, "seed": 5, "max_new_tokens": 4}
    alone = tiny.chat(**request, n=3)
    assert tiny.chat_batch([request, {**request, "n": 3}])[1] == alone
    assert len(alone.alternatives) == 2
    for bad in (None, "abc", 5):
        with pytest.raises(PromptError, match="requests"):
            tiny.chat_batch(bad)  # type: ignore[arg-type]

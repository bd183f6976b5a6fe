"""The engine's core over a mock model: whatever comes, goes and fails, each row has the tokens that it has alone."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4mm.engine.core import Core, EngineError
from phi4mm.engine.kv_cache import BLOCK
from phi4mm.engine.row import Group, Row
from phi4mm.errors import PromptError
from tests.engine.mock_runner import (
    MEDIUM,
    Collector,
    Later,
    MockEncoder,
    MockRunner,
    alone,
    make_core,
    make_prompt,
    medium,
)

BEGINNINGS = ((), (1, 2, 3, 4) * 9, (5, 6) * 30, (5, 6) * 30 + (7,) * 20)  # that rows may share


@dataclass(frozen=True)
class Visit:
    """A row: its prompt, when it comes, and after how many of its tokens it ends from outside, if it does.

    Attributes:
        beginning: which of ``BEGINNINGS`` it has.
        media: numbers and sizes of its media.
    """

    beginning: int
    token_ids: list[int]
    media: list[tuple[int, int]]
    adapters: tuple[str, ...]
    max_new_tokens: int
    arrival: int
    cancel_after: int | None
    stops_itself: bool
    limited: bool


VISITS = st.lists(
    st.builds(
        Visit,
        beginning=st.integers(0, 3),
        token_ids=st.lists(st.integers(1, 9), min_size=1, max_size=20),
        media=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 20])), max_size=2),
        adapters=st.sampled_from([(), ("vision",), ("speech",), ("speech", "mine")]),
        max_new_tokens=st.integers(1, 40) | st.integers(41, 150),
        arrival=st.integers(0, 15),
        cancel_after=st.none() | st.integers(0, 5),
        stops_itself=st.booleans(),
        limited=st.booleans(),
    ),
    min_size=1,
    max_size=10,
)
FAULTS = st.dictionaries(st.integers(0, 60) | st.integers(61, 300), st.sampled_from(["fault", "memory"]), max_size=4)


def prompt_of(visit: Visit, released: list[int] | None = None):  # type: ignore[no-untyped-def]
    token_ids, media = list(BEGINNINGS[visit.beginning]), []
    for number, size in visit.media:
        media.append(medium(number, size, len(token_ids)))
        token_ids += [MEDIUM] * size
    token_ids += visit.token_ids
    tell = None if released is None else released.append
    return make_prompt(token_ids, visit.adapters, visit.max_new_tokens, tuple(media), tell)


@given(
    VISITS,
    FAULTS,
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(2, 12),
    st.integers(20, 160),
    st.sampled_from([1, 64]),
    st.none() | st.integers(1, 6),
    st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_random_schedules(
    visits: list[Visit],
    faults: dict[int, str],
    max_rows: int,
    prefill_tokens: int,
    blocks: int,
    original: int,
    look_ahead: int,
    polls: int | None,
    shares_prefixes: bool,
) -> None:
    """With ``polls``, media are encoded beside the decoder, which asks so often whether a piece of work is done."""
    core, runner, encoder = make_core(
        blocks * BLOCK,
        original_max_positions=original,
        max_positions=200,
        max_rows=max_rows,
        prefill_tokens=prefill_tokens,
        encoder_bytes=200,
        shares_prefixes=shares_prefixes,
        executor=None if polls is None else Later(polls),
    )
    with patch("phi4mm.engine.scheduler._LOOK_AHEAD", look_ahead):  # with 1, rows often have to grow
        run_schedule(core, runner, encoder, visits, faults, original, limit=1 if polls is None else 2)


def run_schedule(
    core: Core,
    runner: MockRunner,
    encoder: MockEncoder,
    visits: list[Visit],
    faults: dict[int, str],
    original: int,
    *,
    limit: int,
) -> None:
    num_calls = 0

    def fault(kind: str) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls in faults:
            raise MemoryError(kind) if faults[num_calls] == "memory" else RuntimeError(kind)

    runner.fault = encoder.fault = fault
    max_rows, most = core.max_rows, core.most_tokens
    group = Group(limit)
    coming = sorted(visits, key=lambda visit: visit.arrival)
    rows: dict[int, tuple[Visit, Collector, Row]] = {}
    held: list[int] = []
    released: list[int] = []
    time = 0
    while coming or core.busy:
        while coming and coming[0].arrival <= time:
            visit = coming.pop(0)
            prompt = prompt_of(visit, released)
            sink = Collector(visit.cancel_after if visit.stops_itself else None)
            if len(prompt.token_ids) >= most:
                with pytest.raises(PromptError, match="KV cache"):
                    core.submit(prompt, sink)
                continue
            row = core.submit(prompt, sink, group if visit.limited else None)
            held += [item.nbytes for item in prompt.media]
            rows[row.index] = (visit, sink, row)
            if visit.cancel_after == 0:
                core.cancel(row)
        core.step()
        time += 1
        assert time < 5000
        assert group.num_running <= limit
        assert len(core.scheduler.running) <= max_rows
        for visit, sink, row in rows.values():
            if visit.cancel_after and not visit.stops_itself and len(sink.tokens) >= visit.cancel_after:
                core.cancel(row)
    _check(rows, original, most, could_fail="fault" in faults.values() or "memory" in faults.values())
    assert sorted(released) == sorted(held)  # no features are kept
    core.scheduler.drop_prefixes()
    assert core.scheduler.arena.num_used == 0
    assert group.num_running == 0


def _check(rows: dict[int, tuple[Visit, Collector, Row]], original: int, most: int, *, could_fail: bool) -> None:
    for visit, sink, _ in rows.values():
        expected = alone(prompt_of(visit), original, most)
        if sink.error is not None:
            assert could_fail
            assert isinstance(sink.error, EngineError)
            assert sink.tokens == expected[: len(sink.tokens)]
        elif visit.cancel_after is not None and visit.cancel_after < len(expected):
            stopped_itself = visit.stops_itself and visit.cancel_after > 0
            assert sink.tokens == expected[: visit.cancel_after] or not stopped_itself
            assert sink.tokens == expected[: len(sink.tokens)]
        elif visit.cancel_after != 0:
            assert sink.tokens == expected
            assert sink.reason == ("stop" if expected[-1] == 0 else "length")


def run(core: Core, count: int = 10_000) -> int:
    """Steps until nothing is left, ``count`` at most."""
    for number in range(count):
        if not core.busy:
            return number
        core.step()
    return count


def test_a_waiting_row_enters_when_another_ends() -> None:
    core, _, _ = make_core(max_rows=2)
    sinks = [Collector() for _ in range(8)]
    for seed, sink in enumerate(sinks, 1):
        core.submit(make_prompt([seed], max_new_tokens=30), sink)
    num_steps = run(core)
    # Two slots, never idle while a row waits: the last one may run alone for no longer than the longest row.
    lengths = [len(sink.tokens) for sink in sinks]
    assert num_steps <= (sum(lengths) + max(lengths)) / 2 + 8


def test_a_short_prompt_starts_within_two_steps_of_long_ones() -> None:
    core, runner, _ = make_core(prefill_tokens=64)
    decoding, long, longer, short = (Collector() for _ in range(4))
    core.submit(make_prompt([3], max_new_tokens=8), decoding)
    core.submit(make_prompt([1] * 4000, max_new_tokens=1), long)
    core.submit(make_prompt([2] * 3000, max_new_tokens=1), longer)
    for _ in range(3):
        core.step()
    core.submit(make_prompt([4] * 30, max_new_tokens=4), short)
    core.step()
    core.step()
    assert short.tokens
    assert not long.tokens
    run(core)
    assert long.tokens == alone(make_prompt([1] * 4000, max_new_tokens=1), 10**6, 10**6)
    assert longer.tokens
    assert max(runner.prefilled[1:]) <= 4 * 64


def test_a_long_prompt_and_a_long_medium_do_not_stall_rows_that_are_decoded() -> None:
    core, _, encoder = make_core(prefill_tokens=4)
    short, long = Collector(), Collector()
    prompt = make_prompt([1], max_new_tokens=8)
    expected = alone(prompt, 10**6, 10**6)
    core.submit(prompt, short)
    core.step()
    core.submit(make_prompt([MEDIUM] * 50 + [1] * 50, media=(medium(1, 50, 0),), max_new_tokens=1), long)
    for count in range(2, len(expected) + 1):
        core.step()
        assert len(short.tokens) == count  # a token a step, whatever else is done
    run(core)
    assert long.tokens
    assert encoder.encoded == [1]


def test_a_cancelled_row_makes_room_at_once() -> None:
    core, _, _ = make_core(max_rows=1)
    first, second = Collector(), Collector()
    row = core.submit(make_prompt([1, 2], max_new_tokens=50), first)
    core.submit(make_prompt([3, 4], max_new_tokens=1), second)
    core.step()
    assert (len(first.tokens), len(second.tokens)) == (1, 0)
    core.cancel(row)
    core.step()
    assert len(second.tokens) == 1
    assert not core.busy
    core.cancel(row)


def test_a_prefix_is_not_computed_again() -> None:
    core, runner, encoder = make_core()
    clip = medium(7, 40, 0)
    questions = [make_prompt([MEDIUM] * 40 + [1] * 20 + [n], media=(clip,), max_new_tokens=3) for n in (2, 3, 4)]
    sinks = [Collector() for _ in questions]
    core.submit(questions[0], sinks[0])
    run(core)
    core.submit(questions[1], sinks[1])
    core.submit(questions[2], sinks[2])
    run(core)
    assert encoder.encoded == [7]
    assert [sink.num_cached for sink in sinks] == [0, 60, 60]
    assert runner.prefilled == [61, 2]
    assert [sink.tokens for sink in sinks] == [alone(question, 10**6, 10**6) for question in questions]


def test_rows_that_come_together_compute_their_common_beginning_once() -> None:
    core, runner, _ = make_core(prefill_tokens=16)
    sinks = [Collector() for _ in range(4)]
    for number, sink in enumerate(sinks):
        core.submit(make_prompt([1] * 100 + [number + 1], max_new_tokens=2), sink)
    run(core)
    assert sum(runner.prefilled) == 101 + 3
    assert [sink.num_cached for sink in sinks] == [0, 100, 100, 100]


@pytest.mark.parametrize("num_others", [0, 1])
def test_a_copy_that_fails_leaves_nothing_behind(num_others: int) -> None:
    """A kept prefix is moved to where there is room for a longer row, or copied from a row that runs."""
    core, runner, _ = make_core(num_tokens=16 * BLOCK)
    core.submit(make_prompt([1] * 60, max_new_tokens=4), Collector())
    run(core)
    core.submit(make_prompt([2] * 60, max_new_tokens=4), Collector())  # it lies behind the first
    for number in range(num_others):
        core.submit(make_prompt([1] * 60 + [3 + number], max_new_tokens=50), Collector())
    core.step()
    runner.fault = _once("copy", RuntimeError("the copy failed"))
    sink, again = Collector(), Collector()
    core.submit(make_prompt([1] * 60 + [5] * 100, max_new_tokens=2), sink)
    run(core)
    assert "the copy failed" in str(sink.error)
    core.submit(make_prompt([1] * 60 + [5] * 100, max_new_tokens=2), again)
    run(core)
    assert again.tokens == alone(make_prompt([1] * 60 + [5] * 100, max_new_tokens=2), 10**6, 10**6)
    core.scheduler.drop_prefixes()
    assert core.scheduler.arena.num_used == 0


def test_a_row_that_cannot_be_moved_to_more_room_fails_alone() -> None:
    core, runner, _ = make_core()
    prompts = [make_prompt([seed] * 60, max_new_tokens=150) for seed in (4, 7)]
    expected = [alone(prompt, 10**6, 10**6) for prompt in prompts]
    assert all(len(tokens) > BLOCK + 8 for tokens in expected)
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        core.submit(prompt, sink)
    core.step()
    runner.fault = _once("copy", RuntimeError("the copy failed"))  # of the first: the second lies behind it
    run(core)
    assert "the copy failed" in str(sinks[0].error)
    assert sinks[1].tokens == expected[1]
    core.scheduler.drop_prefixes()
    assert core.scheduler.arena.num_used == 0


def test_another_adapter_shares_nothing_and_a_dropped_one_leaves_nothing() -> None:
    core, _, _ = make_core()
    for adapters, expected in ((("speech",), 0), (("vision",), 0), (("speech",), 31)):
        sink = Collector()
        core.submit(make_prompt([1] * 32, adapters, max_new_tokens=2), sink)
        run(core)
        assert sink.num_cached == expected
    core.scheduler.drop_prefixes("speech")
    for adapters, expected in ((("speech",), 0), (("vision",), 31)):
        sink = Collector()
        core.submit(make_prompt([1] * 32, adapters, max_new_tokens=2), sink)
        run(core)
        assert sink.num_cached == expected


def test_a_next_turn_goes_on_where_the_last_ended() -> None:
    core, runner, _ = make_core()
    first, second = Collector(), Collector()
    core.submit(make_prompt([1] * 50, max_new_tokens=20), first)
    run(core)
    core.submit(make_prompt([1] * 50 + first.tokens + [3] * 10, max_new_tokens=1), second)
    run(core)
    assert second.num_cached == 50 + len(first.tokens) - 1
    assert runner.prefilled[-1] == 11


def test_a_long_row_costs_its_own_length() -> None:
    core, _, _ = make_core(num_tokens=1 << 15, prefill_tokens=1 << 15)
    sinks = [Collector() for _ in range(16)]
    core.submit(make_prompt([1] * 20_000, max_new_tokens=30), sinks[0])
    for number, sink in enumerate(sinks[1:], 2):
        core.submit(make_prompt([1 + number % 9] * 30 + [number % 7], max_new_tokens=30), sink)
    core.step()
    assert len(core.scheduler.running) == 16
    assert core.scheduler.arena.num_used < 20_000 * 1.25 + 15 * 2 * BLOCK
    run(core)


def test_memory_pressure_makes_the_youngest_wait() -> None:
    core, _, _ = make_core(num_tokens=4 * BLOCK)
    prompts = [make_prompt([seed, 1, seed], max_new_tokens=150) for seed in (4, 7, 8, 9)]
    expected = [alone(prompt, 10**6, 10**6) for prompt in prompts]
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        core.submit(prompt, sink)
    run(core)
    assert [sink.tokens for sink in sinks] == expected


def test_a_fault_ends_the_rows_of_its_call_each_with_its_own_error() -> None:
    core, runner, _ = make_core()
    before, after = [Collector() for _ in range(3)], Collector()
    for seed, sink in enumerate(before, 1):
        core.submit(make_prompt([seed], max_new_tokens=20), sink)
    core.step()
    runner.fault = _once("decode", RuntimeError("a kernel failed"))
    core.step()
    errors = [sink.error for sink in before if sink.error is not None]
    assert len(errors) == len({id(error) for error in errors}) >= 2
    assert all("a kernel failed" in str(error) for error in errors)
    core.submit(make_prompt([5], max_new_tokens=5), after)
    run(core)
    assert after.tokens == alone(make_prompt([5], max_new_tokens=5), 10**6, 10**6)


@pytest.mark.parametrize("kind", ["prefill", "decode", "encode"])
def test_out_of_memory_makes_the_batch_smaller(kind: str) -> None:
    core, runner, encoder = make_core()
    prompts = [make_prompt([MEDIUM] * 3 + [seed], media=(medium(seed, 3, 0),)) for seed in range(1, 5)]
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        core.submit(prompt, sink)
    runner.fault = encoder.fault = _once(kind, torch.OutOfMemoryError("out of memory"))
    run(core)
    assert [sink.tokens for sink in sinks] == [alone(prompt, 10**6, 10**6) for prompt in prompts]


def test_nothing_is_left_of_two_thousand_rows() -> None:
    core, _, _ = make_core(num_tokens=1 << 10)
    for index in range(2000):
        core.submit(make_prompt([1 + index % 10 % 9, 1 + index % 7], max_new_tokens=1 + index % 5), Collector())
        core.step()
    run(core)
    gc.collect()
    assert not any(type(kept) is Row for kept in gc.get_objects())


def _once(kind: str, error: Exception):  # type: ignore[no-untyped-def]
    """A fault in the first call of its kind."""
    left = [error]

    def fault(what: str) -> None:
        if what == kind and left:
            raise left.pop()

    return fault

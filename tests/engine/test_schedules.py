"""Continuous batching over a mock model: whatever comes and goes, each row has the tokens that it has alone."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from phi4mm.engine.engine import Engine, RowState
from tests.engine.mock_runner import MockRunner, alone, make_prompt


@dataclass(frozen=True)
class Visit:
    """A row: its prompt, when it comes, and after how many of its tokens it is cancelled, if it is."""

    token_ids: list[int]
    adapter: str | None
    max_new_tokens: int
    arrival: int
    cancel_after: int | None


VISITS = st.lists(
    st.builds(
        Visit,
        token_ids=st.lists(st.integers(1, 10), min_size=1, max_size=20),
        adapter=st.sampled_from([None, "vision", "speech"]),
        max_new_tokens=st.integers(1, 12),
        arrival=st.integers(0, 15),
        cancel_after=st.none() | st.integers(0, 5),
    ),
    min_size=1,
    max_size=10,
)


@given(VISITS, st.integers(1, 4), st.integers(1, 9), st.integers(4, 24))
@settings(max_examples=1000, deadline=None)
def test_random_schedules(visits: list[Visit], num_slots: int, prefill_tokens: int, original: int) -> None:
    runner = MockRunner(num_slots, original_max_positions=original, max_positions=28)
    engine = Engine(runner, prefill_tokens=prefill_tokens)
    coming = sorted(visits, key=lambda visit: visit.arrival)
    rows: dict[int, Visit] = {}
    tokens: dict[int, list[int]] = {}
    reasons: dict[int, str] = {}
    time = 0
    while coming or engine.busy:
        while coming and coming[0].arrival <= time:
            visit = coming.pop(0)
            index = engine.submit(make_prompt(visit.token_ids, visit.adapter, visit.max_new_tokens))
            rows[index], tokens[index] = visit, []
            if visit.cancel_after == 0:
                engine.cancel(index)
        steps = engine.step()
        assert len({step.row for step in steps}) == len(steps)
        assert len(steps) <= 2 * num_slots
        for step in steps:
            tokens[step.row].append(step.token_id)
            if step.finish_reason is not None:
                reasons[step.row] = step.finish_reason
            if len(tokens[step.row]) == rows[step.row].cancel_after:
                engine.cancel(step.row)
        time += 1
        assert time < 2000
    assert max(runner.prefilled, default=0) <= prefill_tokens
    assert max(runner.decoded, default=0) <= num_slots
    assert engine.num_free == num_slots
    for index, visit in rows.items():
        expected = alone(make_prompt(visit.token_ids, visit.adapter, visit.max_new_tokens), original, 28)
        if visit.cancel_after is not None and visit.cancel_after < len(expected):
            assert tokens[index] == expected[: visit.cancel_after]
        else:
            assert tokens[index] == expected
            if visit.cancel_after != 0:
                assert reasons[index] == ("stop" if expected[-1] == 0 else "length")


def test_a_waiting_row_enters_when_another_ends() -> None:
    runner = MockRunner(2)
    engine = Engine(runner)
    lengths = [alone(make_prompt([seed], None, 30), 10**6, 10**6) for seed in range(1, 9)]
    for seed in range(1, 9):
        engine.submit(make_prompt([seed], None, 30))
    num_steps = 0
    while engine.busy:
        engine.step()
        num_steps += 1
    # Two slots, never idle while a row waits: the last one may run alone for no longer than the longest row.
    total, longest = sum(map(len, lengths)), max(map(len, lengths))
    assert num_steps <= (total + longest) / 2 + 1


def test_a_long_prompt_does_not_stall_the_others() -> None:
    runner = MockRunner(2)
    engine = Engine(runner, prefill_tokens=4)
    short = engine.submit(make_prompt([1], None, 8))
    expected = alone(make_prompt([1], None, 8), 10**6, 10**6)
    assert [step.row for step in engine.step()] == [short]
    long = engine.submit(make_prompt([1] * 100, None, 1))
    for _ in expected[1:]:
        assert [step.row for step in engine.step()] == [short]
    while engine.busy:
        steps = engine.step()
    assert [step.row for step in steps] == [long]
    assert runner.prefilled == [1] + [4] * 25


def test_cancelling_frees_the_slot_at_once() -> None:
    engine = Engine(MockRunner(1))
    first = engine.submit(make_prompt([1, 2], None, 50))
    second = engine.submit(make_prompt([3, 4], None, 1))
    assert engine.num_free == 0
    assert [step.row for step in engine.step()] == [first]
    engine.cancel(first)
    assert [step.row for step in engine.step()] == [second]
    assert engine.num_free == 1
    assert not engine.busy
    engine.cancel(first)


def test_rows_close_up_when_others_leave() -> None:
    runner = MockRunner(3)
    engine = Engine(runner)
    rows = [engine.submit(make_prompt([seed], None, 4)) for seed in (1, 2, 3)]
    engine.step()
    engine.cancel(rows[0])
    assert [step.row for step in engine.step()] in ([2, 1], [1, 2])
    assert runner.num_moves == 1


def test_nothing_is_left_of_two_thousand_rows() -> None:
    runner = MockRunner(8)
    engine = Engine(runner)
    for index in range(2000):
        engine.submit(make_prompt([1 + index % 10, 1 + index % 7], None, 1 + index % 5))
        engine.step()
    while engine.busy:
        engine.step()
    gc.collect()
    assert not any(type(kept) is RowState for kept in gc.get_objects())
    assert engine.num_free == 8

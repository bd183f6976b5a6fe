"""This package's side of the benchmark, on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4mm import Phi4MM
from phi4mm.bench import cases
from phi4mm.bench.ours import Ours
from phi4mm.engine.options import EngineOptions
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Reply


@pytest.fixture
def ours(tiny_model: Phi4MMModel, tokenizer_file: Path) -> Iterator[Ours]:
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=4096)) as phi:
        yield Ours(phi, cases.Preset(None, num_clips=2, new_tokens=3))


def answers(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> list[list[Reply]]:
    """The replies of each call from now on."""
    calls: list[list[Reply]] = []
    chat_batch = ours.phi.chat_batch
    monkeypatch.setattr(ours.phi, "chat_batch", lambda *args, **options: calls.append(chat_batch(*args, **options)))
    return calls


def test_a_repeated_row_finds_nothing_of_the_one_before(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answers(ours, monkeypatch)
    for _ in range(2):
        ours.generate("text", 3, 5)
    assert [[reply.usage.cached_tokens for reply in replies] for replies in calls] == [[0, 0, 0]] * 2
    assert [len(reply.token_ids) for replies in calls for reply in replies] == [5] * 6  # none ends earlier


def test_a_second_question_finds_the_medium(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answers(ours, monkeypatch)
    assert ours.second_question("audio", True) > 0
    assert ours.second_question("audio", False) > 0
    assert [replies[0].usage.cached_tokens > 0 for replies in calls] == [False, True, False]

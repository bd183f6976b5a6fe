"""How the next token is chosen."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.engine.sampler import Sampling, next_token

LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def draw(sampling: Sampling, count: int = 2000, seen: tuple[int, ...] = ()) -> Counter[int]:
    generator = sampling.generator()
    return Counter(next_token(LOGITS, seen, sampling, generator) for _ in range(count))


def test_greedy_takes_the_best() -> None:
    assert draw(Sampling(1), count=3) == {3: 3}


def test_sampling_follows_the_probabilities() -> None:
    counts = draw(Sampling(1, temperature=1.0, seed=0))
    assert [counts[token] / 2000 for token in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.04)


def test_low_temperature_sharpens() -> None:
    assert draw(Sampling(1, temperature=0.1, seed=0))[3] > 1800


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1, temperature=1.0, top_k=2, seed=0), {2, 3}),
        (Sampling(1, temperature=1.0, top_p=0.5, seed=0), {2, 3}),
        (Sampling(1, temperature=1.0, top_p=0.01, seed=0), {3}),
        (Sampling(1, temperature=1.0, top_k=99, seed=0), {0, 1, 2, 3}),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(sampling: Sampling, kept: set[int]) -> None:
    assert set(draw(sampling)) == kept


def test_repetition_penalty_turns_away_from_seen_tokens() -> None:
    assert draw(Sampling(1, repetition_penalty=10.0), count=2, seen=(3, 3)) == {2: 2}


@given(seed=st.integers(0, 2**63 - 1), temperature=st.floats(0.1, 5))
def test_a_seed_repeats_itself(seed: int, temperature: float) -> None:
    sampling = Sampling(1, temperature=temperature, top_p=0.9, seed=seed)
    assert draw(sampling, count=5) == draw(sampling, count=5)

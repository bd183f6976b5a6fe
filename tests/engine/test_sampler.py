"""How the next tokens are chosen."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from phi4mm.engine.row_sampler import RowSampler
from phi4mm.engine.sampler import Choice, choose
from phi4mm.errors import Phi4MMError, PromptError
from phi4mm.types import SamplingParams

LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def sampler(vocab_size: int = 4, prompt: Sequence[int] = (), choice: int = 0, **params: Any) -> RowSampler:
    return RowSampler(SamplingParams(**params), prompt, vocab_size=vocab_size, choice=choice)


def choice_of(logits: Tensor, row: RowSampler) -> Choice:
    (choice,) = choose(logits[None], [row])
    assert isinstance(choice, Choice), choice
    return choice


def draw(logits: Tensor = LOGITS, count: int = 1000, **params: Any) -> Counter[int]:
    """Tokens drawn by ``count`` rows of one step, each with a seed of its own."""
    rows = [sampler(len(logits), **{"temperature": 1.0, "seed": seed, **params}) for seed in range(count)]
    choices = choose(logits.expand(count, -1), rows)
    return Counter(choice.token_id for choice in choices if isinstance(choice, Choice))


def test_greedy_takes_the_highest_and_the_first_of_equals() -> None:
    choice = choice_of(LOGITS, sampler())
    assert choice == Choice(3, pytest.approx(math.log(0.4)))  # type: ignore[arg-type]
    assert choice_of(torch.tensor([0.0, 2.0, 2.0, 1.0]), sampler()).token_id == 1


@pytest.mark.parametrize("params", [{}, {"min_p": 1e-6}, {"top_p": 0.999999}, {"logit_bias": {0: 0.0}}])
def test_draws_follow_the_probabilities(params: dict[str, Any]) -> None:
    counts = draw(count=4000, **params)
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_draws_over_many_blocks_follow_the_probabilities() -> None:
    probabilities = torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 8
    counts = draw(probabilities.log(), count=4000)
    expected = probabilities / probabilities.sum() * 4000
    found = torch.tensor([counts[token] for token in range(500)])
    likely = expected > 5
    assert ((found - expected)[likely] ** 2 / expected[likely]).sum() < 1.5 * likely.sum()  # chi squared


def test_low_temperatures_sharpen() -> None:
    assert draw(temperature=0.1)[3] > 900
    assert set(draw(temperature=1e-40, count=50)) == {3}


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {2, 3}),
        ({"top_p": 0.01}, {3}),
        ({"top_k": 3, "top_p": 0.7}, {2, 3}),  # of 0.9: the first two have 0.78
        ({"min_p": 0.6}, {2, 3}),
        ({"min_p": 1.0}, {3}),
        ({"top_k": 3, "min_p": 0.4}, {1, 2, 3}),
        ({"banned_tokens": [3, 1]}, {0, 2}),
        ({"logit_bias": {1: 100.0}}, {1}),
        ({"logit_bias": {3: -100.0, 2: -100.0}}, {0, 1}),
        ({"banned_tokens": [3], "logit_bias": {3: 100.0}, "top_k": 1}, {2}),
    ],
)
def test_which_tokens_are_drawn(params: dict[str, Any], kept: set[int]) -> None:
    assert set(draw(**params)) == kept


@given(
    vocab_size=st.integers(2, 700),
    spread=st.floats(0.01, 6),
    rounded=st.booleans(),
    temperature=st.floats(0.2, 3),
    top_k=st.sampled_from([0, 1, 5, 300]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_the_distribution_is_that_of_transformers(
    vocab_size: int,
    spread: float,
    rounded: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    seed: int,
) -> None:
    """Of a fine grid of random numbers, each token takes as many as its probability says."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab_size, generator=generator) * spread
    logits = logits.bfloat16().float() if rounded else logits
    if rounded and (top_k or top_p < 1.0):  # of equal logits at the edge transformers keeps all, or any
        logits += torch.arange(vocab_size) * -1e-3
    prompt = torch.randint(vocab_size, (5,), generator=generator)
    expected = logits[None]
    if penalty != 1.0:
        expected = RepetitionPenaltyLogitsProcessor(penalty)(prompt[None], expected)
    expected = TemperatureLogitsWarper(temperature)(prompt[None], expected)
    if top_k:
        expected = TopKLogitsWarper(top_k)(prompt[None], expected)
    if top_p < 1.0:
        expected = TopPLogitsWarper(top_p)(prompt[None], expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(prompt[None], expected)
    probabilities = expected[0].double().softmax(dim=-1)

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=seed
    )
    rows = [RowSampler(params, prompt.tolist(), vocab_size=vocab_size) for _ in range(200)]
    for place, row in enumerate(rows):
        row.uniform = lambda place=place: (place + 0.5) / 200  # type: ignore[method-assign]
    found = torch.zeros(vocab_size, dtype=torch.float64)
    for choice in choose(logits.expand(200, -1), rows):
        assert isinstance(choice, Choice)
        found[choice.token_id] += 1 / 200
    # Each token owns one stretch of the grid, so its count is off by less than one on either side.
    assert (found - probabilities).abs().max() < 1.01 / 200 + 1e-6
    assert not found[probabilities == 0].any()


def test_equal_logits_at_an_edge_are_kept_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1000)
    assert set(draw(logits, top_k=3)) == {0, 1, 2}
    assert set(draw(logits, top_p=0.0025)) == {0, 1, 2}
    logits[700:] = 1.0
    assert set(draw(logits, top_k=2)) == {700, 701}
    assert max(draw(logits, top_k=301, count=2000)) == 999


@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 5000}, {"min_p": 0.1}, {"top_k": 700, "top_p": 0.5}])
def test_more_candidates_are_taken_where_the_first_do_not_do(params: dict[str, Any]) -> None:
    logits = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 0.5
    kept = torch.full((20000,), True)
    order = logits.argsort(descending=True)
    probabilities = logits[order].double().softmax(dim=-1)
    if "top_k" in params:
        probabilities[params["top_k"] :] = 0
        probabilities /= probabilities.sum()
    before = probabilities.cumsum(dim=-1) - probabilities
    kept[order] = (before < params.get("top_p", 1.0)) & (probabilities > 0)
    kept &= logits - logits.max() >= math.log(params.get("min_p", 1e-30))
    counts = draw(logits, count=300, **params)
    assert counts.total() == 300
    assert all(kept[token] for token in counts)
    assert len(counts) > 100


def test_penalties_follow_the_formula_of_openai() -> None:
    logits = torch.tensor([2.0, 1.9, 1.0, -1.0])
    row = sampler(prompt=[1, 1], presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 0.3})
    chosen = []
    for _ in range(5):
        chosen.append(choice_of(logits, row).token_id)
        row.push(chosen[-1])
    # 0: 2.0, 1.25, 1.0, 0.75; 1: 1.9, 1.15, 0.9; 2: 1.3, 0.55. The prompt does not count.
    assert chosen == [0, 1, 2, 0, 1]


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([4.0, 3.0, -1.0, -1.5])
    row = sampler(prompt=[0], repetition_penalty=2.0)
    assert choice_of(logits, row).token_id == 1
    row.push(1)
    assert choice_of(logits, row).token_id == 0  # 2 against 1.5
    assert choice_of(torch.tensor([-1.0, -1.0, -3.0, -1.8]), row).token_id == 3  # -2, -2, -3, -1.8


def test_logprobs_are_of_the_unchanged_logits() -> None:
    row = sampler(logprobs=3, banned_tokens=[3], temperature=0.5, top_k=1, repetition_penalty=3.0)
    choice = choice_of(LOGITS, row)
    assert (choice.token_id, choice.logprob) == (2, pytest.approx(math.log(0.3)))
    assert [token for token, _ in choice.top] == [3, 2, 1]
    assert [logprob for _, logprob in choice.top] == pytest.approx([math.log(p) for p in (0.4, 0.3, 0.2)])


@pytest.mark.parametrize("params", [{}, {"top_k": 9}, {"top_p": 0.9}, {"repetition_penalty": 1.1, "top_p": 0.8}])
def test_logprobs_are_those_of_log_softmax(params: dict[str, Any]) -> None:
    logits = (torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    before = logits.clone()
    rows = [sampler(1000, prompt=range(9), logprobs=n, temperature=0.9, seed=n, **params) for n in (0, 1, 20, 5, 20)]
    expected = logits.float().log_softmax(dim=-1)
    for n, choice in enumerate(choose(logits, rows)):
        assert isinstance(choice, Choice)
        assert choice.logprob == pytest.approx(expected[n, choice.token_id].item(), abs=1e-5)
        assert len(choice.top) == rows[n].params.logprobs
        values = expected[n].sort(descending=True).values[: len(choice.top)]
        assert [logprob for _, logprob in choice.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert torch.equal(logits, before)


def test_processors_see_what_was_generated_and_may_write_in_place() -> None:
    seen: list[Sequence[int]] = []

    def forbid(token_ids: Sequence[int], logits: Tensor) -> Tensor:
        seen.append(token_ids)
        logits[list(token_ids)] = -math.inf
        return logits

    logits = LOGITS.clone()
    row = sampler(prompt=[3, 3], processors=[forbid, lambda token_ids, logits: logits * 2])
    for expected in (3, 2, 1):
        assert choice_of(logits, row).token_id == expected
        row.push(expected)
    assert [list(ids) for ids in seen] == [[], [3], [3, 2]]
    assert torch.equal(logits, LOGITS)


def test_a_bad_row_fails_alone() -> None:
    def breaks(token_ids: Sequence[int], logits: Tensor) -> Tensor:
        raise KeyError("mine")

    nan, nothing = torch.tensor([0.0, math.nan, 0.0, 0.0]), torch.full((4,), -math.inf)
    functions: list[Callable[[Sequence[int], Tensor], Any]] = [breaks, lambda _, x: x[:2], lambda _, x: x * math.nan]
    for params in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0, "top_k": 2}):
        rows = [sampler(**params) for _ in range(4)]  # type: ignore[arg-type]
        rows += [sampler(processors=[function], **params) for function in functions]  # type: ignore[arg-type]
        rows += [sampler(banned_tokens=range(4), logprobs=4, **params)]  # type: ignore[arg-type]
        results = choose(torch.stack([LOGITS, nan, nothing, -nothing, LOGITS, LOGITS, LOGITS, LOGITS]), rows)
        good, *bad, raised, cut, not_a_number, all_banned = results
        assert isinstance(good, Choice)
        assert all(isinstance(error, Phi4MMError) and "NaN or infinite" in str(error) for error in bad)
        assert isinstance(raised, KeyError)
        assert "expected logits [4]" in str(cut)
        assert "processors" in str(not_a_number)
        assert "no token is left" in str(all_banned)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    for params in ({"logit_bias": {4: 1.0}}, {"banned_tokens": [0, 4]}):
        with pytest.raises(PromptError, match="token id 4; expected 0 to 3"):
            sampler(**params)  # type: ignore[arg-type]


def test_no_rows_no_choices() -> None:
    assert choose(torch.zeros(0, 4), []) == []


def test_seeds() -> None:
    def drawn(**options: Any) -> list[int]:
        row = sampler(1000, temperature=1.0, **options)
        return [choice_of(torch.zeros(1000), row).token_id for _ in range(8)]

    assert drawn(seed=-1) == drawn(seed=-1) != drawn(seed=1)
    assert drawn(seed=5, choice=1) == drawn(seed=5, choice=1) != drawn(seed=5)
    assert drawn(seed=5, choice=1) != drawn(seed=5, choice=2)
    assert drawn() != drawn()


PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.95, "top_k": 40},
    {"temperature": 0.8, "top_k": 400},
    {"temperature": 1.2, "min_p": 0.02, "logprobs": 3},
    {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0.9, "top_p": 0.9, "logit_bias": {3: 2.0}},
    {"presence_penalty": 1.0, "logprobs": 5},
]


@given(
    vocab_size=st.sampled_from([271, 4096, 40013]),
    kinds=st.lists(st.integers(0, len(PARAMS) - 1), min_size=1, max_size=9),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 2**63),
)
@settings(deadline=None, max_examples=50)
def test_a_row_is_the_same_alone_and_in_any_batch(vocab_size: int, kinds: list[int], threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(3, len(kinds), vocab_size, generator=generator) * 4

    def run(places: Sequence[int]) -> list[list[Choice]]:
        rows = [sampler(vocab_size, prompt=[1, 2], seed=seed + n, **PARAMS[kinds[n]]) for n in places]
        found: list[list[Choice]] = [[] for _ in places]
        for logits in steps:
            for n, choice in enumerate(choose(logits[list(places)], rows)):
                assert isinstance(choice, Choice)
                found[n].append(choice)
                rows[n].push(choice.token_id)
        return found

    before = torch.get_num_threads()
    alone = [run([n])[0] for n in range(len(kinds))]
    order = np.random.default_rng(seed).permutation(len(kinds)).tolist()
    try:
        torch.set_num_threads(threads)
        together = run(range(len(kinds)))
        shuffled = run(order)
    finally:
        torch.set_num_threads(before)
    assert together == alone  # logprobs too, bit for bit
    assert shuffled == [alone[n] for n in order]


ON_THE_DEVICE = """
import torch
from phi4mm.engine.row_sampler import RowSampler
from phi4mm.engine.sampler import choose
from phi4mm.types import SamplingParams
from tests.engine.test_sampler import PARAMS
from tests.second_device import install

device = install()
logits = torch.randn(len(PARAMS), 700)
keep = lambda ids, logits: logits / 2
for processors in (), (keep,):
    make = lambda: [
        RowSampler(SamplingParams(seed=3, processors=processors, **params), [5], vocab_size=700) for params in PARAMS
    ]
    assert choose(logits.to(device), make()) == choose(logits, make())
print("the same")
"""


@pytest.mark.slow
def test_rows_are_chosen_on_the_device() -> None:
    done = subprocess.run([sys.executable, "-c", ON_THE_DEVICE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "the same\n", done.stderr[-3000:]

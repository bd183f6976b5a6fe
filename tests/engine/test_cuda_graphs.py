"""Compiled decoding equals plain decoding. Captured whole and run without inductor, so that no GPU or C++ is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phi4mm import Phi4MM, Phi4MMError
from phi4mm.engine.cuda_graphs import CompiledRunners, DecodeStep
from phi4mm.engine.engine import Engine, Prompt, Runner
from phi4mm.engine.merge import merge
from phi4mm.engine.runner import ModelRunner, Piece, Token
from phi4mm.engine.sampler import Sampling
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Route
from tests.conftest import TINY, randomise

ORIGINAL = 41  # positions; longer rows take the long rope factors
TEXT, SPEECH, VISION = Route(), Route("speech"), Route("vision")


class CountingCompile:
    """Captures whole graphs and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: DecodeStep) -> DecodeStep:
        self.count += 1
        return torch.compile(step, backend="eager", fullgraph=True, dynamic=False)


@pytest.fixture(scope="module", autouse=True)
def no_recompilation() -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def make_model(sliding_window: int | None = None) -> Phi4MMModel:
    decoder = replace(TINY.decoder, original_max_positions=ORIGINAL, sliding_window=sliding_window)
    model = Phi4MMModel(replace(TINY, decoder=decoder, vision=None, speech=None)).eval().requires_grad_(False)
    randomise(model, seed=5)
    return model


@pytest.fixture(scope="module")
def model() -> Phi4MMModel:
    return make_model()


@pytest.fixture(scope="module")
def make_runner() -> CompiledRunners:
    return CompiledRunners(CountingCompile())


@torch.inference_mode()
def check_logits(
    model: Phi4MMModel,
    make_runner: CompiledRunners,
    rows: Sequence[tuple[int, Route]],
    steps: Sequence[Sequence[int]],
) -> None:
    """Prefill rows of these lengths and routes, slot after slot, and decode the slots of each step."""
    plain, compiled = ModelRunner(model, len(rows)), make_runner(model, len(rows))
    generator = torch.Generator().manual_seed(0)
    size = model.config.decoder.hidden_size
    pieces = [
        Piece(slot, 0, torch.randn(length, size, generator=generator), route, length > ORIGINAL, True)
        for slot, (length, route) in enumerate(rows)
    ]
    assert torch.equal(compiled.prefill(pieces), plain.prefill(pieces))
    positions = [length for length, _ in rows]
    for number, slots in enumerate(steps):
        tokens = [
            Token(slot, 10 * number + slot, positions[slot], rows[slot][1], rows[slot][0] > ORIGINAL) for slot in slots
        ]
        logits, expected = compiled.decode(tokens), plain.decode(tokens)
        assert logits.shape == expected.shape
        error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 1e-5
        for slot in slots:
            positions[slot] += 1


def test_logits_of_mixed_rows(model: Phi4MMModel, make_runner: CompiledRunners) -> None:
    # Of one route, of several, with gaps, in any order: the slots that a step leaves out are as they were afterwards.
    rows = [(5, TEXT), (60, SPEECH), (300, VISION), (7, SPEECH)]
    check_logits(model, make_runner, rows, [(0, 1, 2, 3), (3, 1), (2, 0), (0,), (3, 2, 1, 0), (1, 3), (0,)])


def test_logits_with_a_sliding_window(make_runner: CompiledRunners) -> None:
    check_logits(make_model(sliding_window=13), make_runner, [(5, TEXT), (60, TEXT)], [(0, 1), (0, 1)])


def test_logits_of_a_merged_model(make_runner: CompiledRunners) -> None:
    check_logits(
        merge(make_model(), "speech"), make_runner, [(5, SPEECH), (9, SPEECH), (4, TEXT)], [(0, 1), (1,), (0, 1, 2)]
    )


def make_prompt(model: Phi4MMModel, length: int, route: Route, max_new_tokens: int) -> Prompt:
    token_ids = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(length))
    return Prompt(token_ids.tolist(), model.decoder.embed_tokens(token_ids), route, Sampling(max_new_tokens))


def run(runner: Runner, prompts: Sequence[Prompt], seed: int = 0) -> list[list[int]]:
    """The tokens of prompts that come at random times."""
    random = np.random.default_rng(seed)
    engine, coming = Engine(runner, prefill_tokens=int(random.integers(5, 60))), list(prompts)
    tokens: dict[int, list[int]] = {}
    while coming or engine.busy:
        if coming and random.random() < 0.5:
            tokens[engine.submit(coming.pop(0))] = []
        for step in engine.step():
            tokens[step.row].append(step.token_id)
    return list(tokens.values())


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules(model: Phi4MMModel, make_runner: CompiledRunners, seed: int) -> None:
    random = np.random.default_rng(seed)
    prompts = [
        make_prompt(model, int(random.integers(1, 50)), (TEXT, SPEECH)[int(random.integers(2))], 8) for _ in range(8)
    ]
    assert run(make_runner(model, 2), prompts, seed) == run(ModelRunner(model, 2), prompts, seed)


@pytest.mark.parametrize("length", [250, 1018])
def test_a_row_outgrows_its_capacity(model: Phi4MMModel, make_runner: CompiledRunners, length: int) -> None:
    prompts = [make_prompt(model, length, SPEECH, 12)]
    runner = make_runner(model, 1)
    assert run(runner, prompts) == run(ModelRunner(model, 1), prompts)
    assert runner.cache.capacity == (1024 if length == 250 else 2048)


def test_what_was_compiled_is_used_again(model: Phi4MMModel) -> None:
    compile_function = CountingCompile()
    make_runner = CompiledRunners(compile_function)
    prompt = make_prompt(model, 5, TEXT, 4)
    first = make_runner(model, 3)
    expected = run(first, [prompt])
    assert compile_function.count == 1
    assert make_runner(model, 1).cache is not first.cache
    cache = first.cache
    del first
    again = make_runner(model, 4)
    assert again.cache is cache
    assert run(again, [prompt]) == expected
    assert compile_function.count == 1


def test_replies(tiny_model: Phi4MMModel, tokenizer_file: Path, make_runner: CompiledRunners) -> None:
    plain = Phi4MM(tiny_model, tokenizer_file)
    compiled = Phi4MM(tiny_model, tokenizer_file, make_runner=make_runner)
    requests = [{"text": text, "max_new_tokens": 8} for text in ("Hello", "How are you?")]
    assert compiled.chat_batch(requests) == plain.chat_batch(requests)
    assert list(compiled.stream("Hello", max_new_tokens=8)) == list(plain.stream("Hello", max_new_tokens=8))


def test_quantised_weights_are_refused() -> None:
    with pytest.raises(Phi4MMError, match="quantize='int8'"):
        Phi4MM.from_pretrained(compile=True, quantize="int8")

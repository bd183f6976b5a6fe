"""Compiled decoding equals plain decoding. Captured whole and run without inductor, so that no GPU or C++ is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm import Phi4MM, Phi4MMError
from phi4mm.engine import attention, cuda_graphs
from phi4mm.engine.core import Core
from phi4mm.engine.cuda_graphs import CompiledRunner, LayerStep
from phi4mm.engine.kv_cache import BLOCK, Extent
from phi4mm.engine.merge import merge, unmerge
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.runner import Chunk, ModelRunner, Runner, Token
from phi4mm.engine.varlen import VarlenAttention
from phi4mm.model.config import AdapterConfig
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY, randomise
from tests.engine.mock_runner import Collector, MockEncoder, make_prompt

ORIGINAL = 41  # positions; longer rows take the long rope factors
TEXT, SPEECH, VISION, BOTH = (), ("speech",), ("vision",), ("speech", "vision")
Row = tuple[int, tuple[str, ...]]  # its length and adapters


class CountingCompile:
    """Captures whole graphs and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: LayerStep) -> LayerStep:
        self.count += 1
        return torch.compile(step, backend="eager", fullgraph=True, dynamic=False)


@pytest.fixture(autouse=True)
def no_recompilation() -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def make_model(sliding_window: int | None = None) -> Phi4MMModel:
    decoder = replace(TINY.decoder, original_max_positions=ORIGINAL, sliding_window=sliding_window)
    model = Phi4MMModel(replace(TINY, decoder=decoder, vision=None, speech=None)).eval().requires_grad_(False)
    randomise(model, seed=5)
    return model


@pytest.fixture(scope="module")
def model() -> Phi4MMModel:
    return make_model()


def make_compiled(model: Phi4MMModel, num_tokens: int, *, max_rows: int = 8) -> CompiledRunner:
    return CompiledRunner(model, num_tokens, max_rows=max_rows, compile_function=CountingCompile())


@torch.inference_mode()
def check_logits(
    model: Phi4MMModel, compiled: CompiledRunner, rows: Sequence[Row], steps: Sequence[Sequence[int]]
) -> None:
    """Prefill rows of these lengths and adapters, and decode those of each step."""
    plain = ModelRunner(model, compiled.num_tokens)
    for layer in range(len(model.decoder.layers)):
        _, kept = compiled.cache.attention(layer)
        kept.keys.zero_()  # what rows of an earlier call left
        kept.values.zero_()
    random = np.random.default_rng(0)
    extents, start = [], 0
    for length, _ in rows:
        extents.append(Extent(start, -(-(length + len(steps)) // BLOCK) * BLOCK))
        start += extents[-1].capacity
    for extent, (length, adapters) in zip(extents, rows, strict=True):
        token_ids = random.integers(0, 250, length).tolist()
        chunk = Chunk(extent, 0, token_ids, (), adapters, length > ORIGINAL, True)
        assert torch.equal(compiled.prefill([chunk]), plain.prefill([chunk]))
    positions = [length for length, _ in rows]
    for number, chosen in enumerate(steps):
        tokens = [
            Token(extents[row], 10 * number + row, positions[row], rows[row][1], rows[row][0] > ORIGINAL)
            for row in chosen
        ]
        tokens.sort(key=lambda token: token.order)
        logits, expected = compiled.decode(tokens), plain.decode(tokens)
        assert logits.shape == expected.shape
        error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.max() < 1e-5
        for row in chosen:
            positions[row] += 1
    for layer in range(len(model.decoder.layers)):
        one, other = compiled.cache.attention(layer)[1].keys, plain.cache.attention(layer)[1].keys
        torch.testing.assert_close(one[:, : plain.num_tokens], other, rtol=1e-4, atol=1e-4)


def test_logits_of_mixed_rows(model: Phi4MMModel) -> None:
    # Of one set of adapters, of several, and in any number: rows that a step leaves out are as they were afterwards.
    rows = [(5, TEXT), (60, SPEECH), (200, VISION), (7, SPEECH), (64, BOTH)]
    compiled = make_compiled(model, 1024)
    check_logits(model, compiled, rows, [(0, 1, 2, 3, 4), (3, 1), (0,), (0, 4, 3, 2, 1), (1, 3), (4,)])
    assert {(variant.num_rows, variant.names, variant.mixed) for variant in compiled.variants} == {
        (8, BOTH, True),
        (2, SPEECH, False),
        (1, TEXT, False),
        (1, BOTH, False),
    }


def test_logits_with_a_sliding_window() -> None:
    model = make_model(sliding_window=13)
    check_logits(model, make_compiled(model, 320), [(5, TEXT), (130, TEXT)], [(0, 1), (0, 1)])


def test_logits_of_a_merged_model() -> None:
    model = merge(make_model(), "speech")
    compiled = make_compiled(model, 512)
    check_logits(model, compiled, [(5, SPEECH), (9, SPEECH), (4, TEXT)], [(0, 1), (1,), (0, 1, 2)])
    unmerge(model)
    check_logits(model, compiled, [(5, SPEECH), (9, SPEECH)], [(0, 1)])


def test_a_step_is_compiled_once_for_each_number_of_rows(model: Phi4MMModel) -> None:
    compile_function = CountingCompile()
    compiled = CompiledRunner(model, 2048, max_rows=3, compile_function=compile_function)
    check_logits(model, compiled, [(5, SPEECH), (200, SPEECH)], [(0, 1), (1,), (0, 1), (0,)])
    check_logits(model, compiled, [(100, SPEECH), (1, SPEECH), (2, SPEECH)], [(0, 1, 2), (1, 2)])
    assert compile_function.count == 3
    assert [variant.num_rows for variant in compiled.variants] == [2, 1, 3]


def test_rows_with_too_many_keys_are_decoded_plainly(model: Phi4MMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_KEYS", 512)
    compiled = make_compiled(model, 1024)
    check_logits(model, compiled, [(5, TEXT), (300, TEXT)], [(0, 1), (0,)])
    assert [(variant.num_rows, variant.num_keys) for variant in compiled.variants] == [(1, 256)]


def test_an_adapter_that_was_exchanged(model: Phi4MMModel) -> None:
    model = make_model()
    compiled = make_compiled(model, 128)
    check_logits(model, compiled, [(5, SPEECH)], [(0,)])
    model.remove_adapter("speech")
    model.add_adapter(AdapterConfig("speech", rank=2, alpha=3.0))
    randomise(model, seed=6)
    model.requires_grad_(False)
    check_logits(model, compiled, [(5, SPEECH)], [(0,)])


def run(runner: Runner, prompts: Sequence[tuple[Row, int]], seed: int = 0) -> list[list[int]]:
    """The tokens of prompts that come at random times."""
    random = np.random.default_rng(seed)
    core = Core(runner, MockEncoder(), EngineOptions(max_rows=4, prefill_tokens=int(random.integers(5, 60))))
    coming, sinks = list(prompts), []
    while coming or core.busy:
        if coming and random.random() < 0.5:
            (length, adapters), max_new_tokens = coming.pop(0)
            token_ids = np.random.default_rng(length).integers(1, 250, length).tolist()
            sinks.append(Collector())
            prompt = make_prompt(token_ids, adapters, max_new_tokens)
            core.submit(replace(prompt, stop_token_ids=frozenset()), sinks[-1])
        core.step()
    assert all(sink.error is None for sink in sinks)
    return [sink.tokens for sink in sinks]


def attend_by_mask(self: VarlenAttention, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
    """What the kernel computes, which runs on GPUs alone: see ``VarlenAttention``."""
    index, places = torch.arange(len(query)), torch.arange(keys.shape[1])
    row = torch.searchsorted(self.queries[1:].contiguous(), index.int(), right=True)
    starts, last = self.starts[row], self.queries[row + 1]
    ends = starts + self.used[row] - (last - 1 - index)
    seen = (places >= starts[:, None]) & (places < ends[:, None])
    shared = query.shape[1] // keys.shape[0]
    own_keys, own_values = (kept.repeat_interleave(shared, dim=0) for kept in (keys, values))
    attended = F.scaled_dot_product_attention(query.transpose(0, 1), own_keys, own_values, attn_mask=seen)
    return attended.transpose(0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules(model: Phi4MMModel, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    prompts = [
        ((int(random.integers(1, 50)), (TEXT, SPEECH)[int(random.integers(2))]), int(random.integers(1, 9)))
        for _ in range(8)
    ]
    expected = run(ModelRunner(model, 512), prompts, seed)
    assert run(make_compiled(model, 512), prompts, seed) == expected
    for module in (attention, cuda_graphs):
        monkeypatch.setattr(module, "has_varlen", lambda cache: True)
    monkeypatch.setattr(VarlenAttention, "attend", attend_by_mask)
    assert run(ModelRunner(model, 512), prompts, seed) == expected
    assert run(make_compiled(model, 512), prompts, seed) == expected


def test_a_row_outgrows_its_extent_and_moves(model: Phi4MMModel) -> None:
    prompts = [((30, SPEECH), 150), ((20, SPEECH), 80)]  # the first grows into the second
    compiled, copies = make_compiled(model, 1024), []
    copy = compiled.copy

    def counting(source: Extent, target: Extent, num_tokens: int) -> None:
        copies.append(num_tokens)
        copy(source, target, num_tokens)

    compiled.copy = counting  # type: ignore[method-assign]
    assert run(compiled, prompts) == run(ModelRunner(model, 1024), prompts)
    assert copies == [128]


def test_more_keys_are_gathered_for_longer_rows(model: Phi4MMModel) -> None:
    compiled = make_compiled(model, 1024)
    check_logits(model, compiled, [(254, SPEECH)], [(0,), (0,), (0,)])
    assert [variant.num_keys for variant in compiled.variants] == [256, 512]


def test_replies(tiny_model: Phi4MMModel, tokenizer_file: Path) -> None:
    options = EngineOptions(cache_tokens=512)
    for _ in range(2):  # each in a thread of its own
        with Phi4MM(tiny_model, tokenizer_file, options=options, make_runner=make_compiled) as another:
            another.chat("Hello", max_new_tokens=2)
    requests = [{"text": text, "max_new_tokens": 8} for text in ("Hello", "How are you?")]
    with (
        Phi4MM(tiny_model, tokenizer_file, options=options) as plain,
        Phi4MM(tiny_model, tokenizer_file, options=options, make_runner=make_compiled) as compiled,
    ):
        assert compiled.chat_batch(requests) == plain.chat_batch(requests)
        assert list(compiled.stream("Hello", max_new_tokens=8)) == list(plain.stream("Hello", max_new_tokens=8))


def test_quantised_weights_are_refused() -> None:
    with pytest.raises(Phi4MMError, match="quantize='int8'"):
        Phi4MM.from_pretrained(compile=True, quantize="int8")

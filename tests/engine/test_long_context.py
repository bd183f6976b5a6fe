"""Rows that cross the range of the short rope factors, and what a long prompt costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from phi4mm.engine.kv_cache import BLOCK
from phi4mm.inputs.processor import Row
from phi4mm.model.batch import Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route
from tests.conftest import TINY, randomise
from tests.engine.mock_runner import Collector
from tests.engine.real_rows import greedy, make_core, make_prompt, without_cache

ORIGINAL = 40
ROUTES = (Route(), Route(("speech",)), Route(("vision",)), Route(("speech",)))


@pytest.fixture(scope="module")
def model() -> Phi4MMModel:
    """Long factors from 41 positions on."""
    config = replace(TINY, decoder=replace(TINY.decoder, original_max_positions=ORIGINAL))
    model = Phi4MMModel(config).eval().requires_grad_(False)
    randomise(model, seed=3)
    return model


def make_row(length: int, route: Route) -> Row:
    return Row(tuple(torch.randint(0, 250, (length,), generator=torch.manual_seed(length)).tolist()), route)


def alone(model: Phi4MMModel, row: Row, num_tokens: int) -> list[int]:
    batch = Batch(torch.tensor([row.token_ids]), torch.tensor([len(row.token_ids)]), (row.route,))
    return without_cache(model, batch, num_tokens)


@pytest.mark.parametrize(("max_rows", "prefill_tokens"), [(4, 512), (4, 7), (2, 16)])
def test_rows_that_cross_equal_rows_without_a_cache(model: Phi4MMModel, max_rows: int, prefill_tokens: int) -> None:
    # Before the end of the short range, at its last position, beyond it, and never there.
    lengths = (35, ORIGINAL, ORIGINAL + 1, 6)
    rows = [make_row(length, route) for length, route in zip(lengths, ROUTES, strict=True)]
    together = greedy(model, rows, 20, max_rows=max_rows, prefill_tokens=prefill_tokens)
    assert together == [alone(model, row, 20) for row in rows]


def test_the_factors_matter(model: Phi4MMModel) -> None:
    row = make_row(35, ROUTES[1])
    short = Phi4MMModel(replace(model.config, decoder=replace(model.config.decoder, original_max_positions=1000)))
    short.load_state_dict(model.state_dict())
    assert alone(short.eval(), row, 20) != alone(model, row, 20)


def test_rows_of_very_different_lengths(model: Phi4MMModel) -> None:
    rows = [make_row(length, route) for length, route in zip((600, 5, 300, 9), ROUTES, strict=True)]
    core, sinks = make_core(model), [Collector() for _ in rows]
    for row, sink in zip(rows, sinks, strict=True):
        core.submit(make_prompt(row, 6), sink)
    core.step()
    assert core.scheduler.arena.num_used < 1.25 * sum(len(row.token_ids) for row in rows) + len(rows) * 2 * BLOCK
    while core.busy:
        core.step()
    assert [sink.tokens for sink in sinks] == [alone(model, row, 6) for row in rows]


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, and the most rows of logits."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.numel = 0
        self.computed = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                if tensor.shape[-1:] == (self.vocab_size,) and "linear" in str(func):
                    self.computed = max(self.computed, tensor.numel() // self.vocab_size)
        return result


def test_prefill_memory_is_linear_in_the_length(model: Phi4MMModel) -> None:
    largest = {}
    for length in (512, 1024, 2048 - 1):
        core, sink = make_core(model, cache_tokens=2048, prefill_tokens=64), Collector()
        # The fused kernel alone: one that keeps its logits inside the operation would not be seen.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), Largest(TINY.decoder.vocab_size) as record:
            core.submit(make_prompt(make_row(length, ROUTES[0]), 1), sink)
            while core.busy:
                core.step()
        assert sink.reason == "length"
        largest[length] = record.numel
        assert record.computed == 1
    assert largest[2047] <= 2.1 * largest[1024]
    assert largest[2047] < 2047**2 / 8

"""Rows that cross the range of the short rope factors, and what a long prompt costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from phi4mm.engine.engine import Engine, Prompt
from phi4mm.engine.kv_cache import KeyValueCache
from phi4mm.engine.runner import ModelRunner
from phi4mm.engine.sampler import Sampling
from phi4mm.model.config import DecoderConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Route
from tests.conftest import TINY, randomise

ORIGINAL = 40
ROUTES = (Route(None), Route("speech"), Route("vision"), Route("speech"))


@pytest.fixture(scope="module")
def model() -> Phi4MMModel:
    """Long factors from 41 positions on."""
    config = replace(TINY, decoder=replace(TINY.decoder, original_max_positions=ORIGINAL))
    model = Phi4MMModel(config).eval().requires_grad_(False)
    randomise(model, seed=3)
    return model


def make_prompt(model: Phi4MMModel, length: int, route: Route, max_new_tokens: int) -> Prompt:
    token_ids = torch.randint(0, 250, (length,), generator=torch.manual_seed(length))
    return Prompt(token_ids.tolist(), model.decoder.embed_tokens(token_ids), route, Sampling(max_new_tokens))


def run(model: Phi4MMModel, prompts: list[Prompt], num_slots: int, prefill_tokens: int) -> list[list[int]]:
    engine = Engine(ModelRunner(model, num_slots), prefill_tokens=prefill_tokens)
    rows = [engine.submit(prompt) for prompt in prompts]
    tokens: dict[int, list[int]] = {row: [] for row in rows}
    while engine.busy:
        for step in engine.step():
            tokens[step.row].append(step.token_id)
    return list(tokens.values())


@torch.no_grad()
def without_cache(model: Phi4MMModel, prompt: Prompt) -> list[int]:
    """The whole row again for each token."""
    embeddings, new = prompt.embeddings[None], []
    for _ in range(prompt.sampling.max_new_tokens):
        length = embeddings.shape[1]
        hidden = model.decoder(
            embeddings,
            torch.arange(length)[None],
            model.long_rows(torch.tensor([length])),
            gate=model.gate((prompt.route,)),
        )
        new.append(int(model.decoder.logits(hidden[0, -1]).argmax()))
        embeddings = torch.cat((embeddings, model.decoder.embed_tokens(torch.tensor([new[-1:]]))), dim=1)
    return new


@pytest.mark.parametrize(("num_slots", "prefill_tokens"), [(4, 512), (4, 7), (2, 16)])
def test_rows_that_cross_equal_rows_without_a_cache(model: Phi4MMModel, num_slots: int, prefill_tokens: int) -> None:
    # Before the end of the short range, at its last position, beyond it, and never there.
    lengths = (35, ORIGINAL, ORIGINAL + 1, 6)
    prompts = [make_prompt(model, length, route, 20) for length, route in zip(lengths, ROUTES, strict=True)]
    assert run(model, prompts, num_slots, prefill_tokens) == [without_cache(model, prompt) for prompt in prompts]


def test_the_factors_matter(model: Phi4MMModel) -> None:
    prompt = make_prompt(model, 35, ROUTES[1], 20)
    short = Phi4MMModel(replace(model.config, decoder=replace(model.config.decoder, original_max_positions=1000)))
    short.load_state_dict(model.state_dict())
    assert without_cache(short.eval(), prompt) != without_cache(model, prompt)


def test_rows_of_very_different_lengths(model: Phi4MMModel) -> None:
    """Over 256 positions apart they are attended to one by one."""
    prompts = [make_prompt(model, length, route, 6) for length, route in zip((600, 5, 300, 9), ROUTES, strict=True)]
    assert run(model, prompts, 4, 512) == [without_cache(model, prompt) for prompt in prompts]


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
        engine = Engine(ModelRunner(model, 1), prefill_tokens=64)
        prompt = make_prompt(model, length, ROUTES[0], 1)
        # The fused kernel alone: one that keeps its logits inside the operation would not be seen.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), Largest(TINY.decoder.vocab_size) as record:
            engine.submit(prompt)
            while engine.busy:
                engine.step()
        largest[length] = record.numel
        assert record.computed == 1
    assert largest[2047] <= 2.1 * largest[1024]
    assert largest[2047] < 2047**2 / 8


def test_slots_take_memory_where_they_are_written() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * 4096

    config = DecoderConfig(hidden_size=64, num_heads=2, num_kv_heads=2, num_layers=1, short_factor=(), long_factor=())
    before = resident()
    cache = KeyValueCache(config, 16, device=torch.device("cpu"), dtype=torch.float32)
    cache.reserve(1 << 18)
    cache.keys[0][3, :, :1000] = 1.0
    cache.move(3, 4, 1000)
    assert cache.keys[0].nbytes + cache.values[0].nbytes >= 2 << 30
    assert resident() - before < 100 << 20

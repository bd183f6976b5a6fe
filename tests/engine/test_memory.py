"""The KV cache keeps to the tokens that it was given, whatever comes and goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phi4mm import Phi4MM, PromptError
from phi4mm.engine.kv_cache import KVCache
from phi4mm.engine.options import EngineOptions
from phi4mm.inputs.processor import Row
from phi4mm.model.cache import KeyValueSpec
from phi4mm.model.config import DecoderConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route
from tests.conftest import TINY
from tests.engine.mock_runner import Collector
from tests.engine.real_rows import make_core, make_prompt
from tests.media import speech

STATM = Path("/proc/self/statm")
needs_proc = pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
MIB = 1 << 20


def resident() -> int:
    return int(STATM.read_text().split()[1]) * 4096


@pytest.fixture(scope="module")
def wide_model() -> Phi4MMModel:
    """Keys and values of 32 KiB a token."""
    decoder = DecoderConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=8,
        num_layers=16,
        num_heads=2,
        num_kv_heads=2,
        max_positions=4096,
        original_max_positions=4096,
        short_factor=(),
        long_factor=(),
    )
    return Phi4MMModel(replace(TINY, decoder=decoder, vision=None, speech=None, adapters=())).eval()


@needs_proc
def test_rows_of_any_length_stay_within_the_cache(wide_model: Phi4MMModel) -> None:
    """Three times as many tokens come and go as the cache holds: its memory is taken once and no more."""
    token_bytes = KVCache.token_bytes(wide_model.decoder.cache_specs(), torch.float32)
    cache_tokens = 4096
    random = np.random.default_rng(0)
    core = make_core(wide_model, cache_tokens=cache_tokens, prefill_tokens=256, max_rows=16)
    before, largest, total = resident(), 0, 0
    while total < 3 * cache_tokens:
        length = int(random.choice([10, 50, 300, 1000]))
        total += length
        row = Row(tuple(random.integers(0, 60, length).tolist()), Route())
        core.submit(make_prompt(row, int(random.integers(1, 8))), Collector())
        while core.busy and core.num_rows > 4:
            core.step()
            largest = max(largest, resident() - before)
            assert core.scheduler.arena.num_used <= cache_tokens
    while core.busy:
        core.step()
    bound = cache_tokens * token_bytes
    assert bound == 128 * MIB
    assert largest < bound + 48 * MIB  # and what a chunk's own tensors take


@needs_proc
def test_a_cache_takes_memory_where_it_is_written() -> None:
    before = resident()
    spec = KeyValueSpec(num_kv_heads=2, head_size=32, window=None)
    cache = KVCache([spec], 1 << 22, device=torch.device("cpu"), dtype=torch.float32)
    _, kept = cache.attention(0)
    kept.keys[:, 3000:4000] = 1.0
    cache.copy(3000, 5000, 1000)
    assert bool((kept.keys[:, 5000:6000] == 1.0).all())
    assert kept.keys.nbytes + kept.values.nbytes >= 2 << 30
    assert resident() - before < 100 * MIB


def test_a_prompt_longer_than_the_cache_is_refused(tiny_model: Phi4MMModel, tokenizer_file: Path) -> None:
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=128)) as model:
        for wrong in ({"text": "x" * 200}, {"text": "x" * 120, "audios": [speech(2.0)]}):
            with pytest.raises(PromptError, match=r"the KV cache holds 128: shorten it.*cache_tokens"):
                model.submit(wrong).result(20)
        reply = model.chat("x" * 100, max_new_tokens=100)
        assert reply.finish_reason == "length"
        assert reply.usage.prompt_tokens + reply.usage.new_tokens == 128
        assert model.chat("Hello", max_new_tokens=3).usage.new_tokens == 3

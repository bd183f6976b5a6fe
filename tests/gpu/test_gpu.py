"""What only a GPU shows. Runs on a bare machine with torch, transformers, tokenizers, Pillow and pytest:
``python -m pytest tests/gpu``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from phi4mm import Phi4MM, Phi4MMError
from phi4mm.bench import cases
from phi4mm.bench.gpu_checks import check_compiled, check_parity, step_error, training_step
from phi4mm.bench.gpu_report import Budget, Report
from phi4mm.bench.gpu_setting import TINY, Setting, full_setting, requests
from phi4mm.engine.kv_cache import BLOCK, KVCache
from phi4mm.types import SamplingParams

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return full_setting(torch.device("cuda"))


@pytest.mark.parametrize("check", [check_parity, check_compiled])
def test_checks_of_the_program(setting: Setting, check: Callable[[Setting, Budget, Report], None]) -> None:
    # Logits and tokens of each modality on the CPU and on the GPU, alone and in a batch; compiled and plain.
    report = Report({})
    check(setting, Budget(500.0), report)
    assert report.figures
    assert [figure for figure in report.figures if not figure.passed] == []


@pytest.mark.parametrize("how", ["captured", "compiled"])
def test_one_graph_serves_rows_of_every_length(setting: Setting, how: str) -> None:
    model = cases.random_model(cases.with_bundled_tokens(TINY), setting.device, torch.float32)
    for lengths in ((1, 250), (63, 64), (64, 65)):
        assert step_error(setting, model, [((), length) for length in lengths], how) < 1e-3


def test_memory_stays_within_its_bounds() -> None:
    torch.cuda.empty_cache()
    with Phi4MM.from_pretrained(device="cuda", cache_tokens=4096 * BLOCK) as phi:
        before = torch.cuda.memory_allocated()
        cache = 4096 * BLOCK * KVCache.token_bytes(phi.model.decoder.cache_specs(), phi.model.dtype)
        allocated = []
        for number in range(3):
            phi.chat_batch([{"text": f"{number} {row}", "max_new_tokens": 40} for row in range(100)], batch_size=64)
            allocated.append(torch.cuda.memory_allocated() - before)
        assert cache <= allocated[0] < cache + (256 << 20)  # cuBLAS and the captured steps take some
        assert allocated[-1] <= allocated[0] + (1 << 20)


def test_a_cache_larger_than_the_memory_is_refused() -> None:
    with (
        Phi4MM.from_pretrained(device="cuda", cache_tokens=1 << 40) as phi,
        pytest.raises(Phi4MMError, match=r"could not start.*memory"),
    ):
        phi.chat("Hello", max_new_tokens=2)


def test_sampled_tokens_are_the_same_in_any_batch(setting: Setting) -> None:
    model = cases.random_model(cases.with_bundled_tokens(TINY), setting.device, torch.float32)
    sampling = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.95, seed=3)
    with setting.phi(model, cache_tokens=4096) as phi:
        [alone] = phi.chat_batch([{"text": "Hello", "sampling": sampling}])
        others = [replace(request, sampling=sampling) for request in requests()]
        together = phi.chat_batch([{"text": "Hello", "sampling": sampling}, *others])
    assert together[0].token_ids == alone.token_ids


@pytest.mark.parametrize("kind", ["projector", "adapter", "tower"])
def test_a_training_step(setting: Setting, kind: str) -> None:
    model = cases.random_model(cases.with_bundled_tokens(TINY), setting.device, torch.float32)
    _, loss, changed = training_step(setting, model, kind)
    assert torch.tensor(loss).isfinite()
    assert changed

"""Checks of the GPU program: the device computes what the CPU does, compiled what plain does, and it trains."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.bench.gpu_report import Budget, Figure, Report, need
from phi4mm.bench.gpu_setting import TINY, Setting, exact, requests
from phi4mm.engine.kv_cache import Extent
from phi4mm.engine.runner import Chunk, Token
from phi4mm.loading import load
from phi4mm.model.lora import LoRA
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Modality, Request, SamplingParams

TOLERANCE = 1e-3  # of float32 logits: largest difference over largest magnitude
HALF_TOLERANCE = 3e-2  # of float16 logits: norm of the difference over norm
_NEW_TOKENS = 24
_NUM_CLIPS = 4  # of a training step


def models() -> dict[str, Phi4MMModel]:
    """In float32 on the CPU: the bundled checkpoint, and a small one with random weights."""
    bundled = load(device="cpu", dtype="float32", prepack=False).model
    config = cases.with_bundled_tokens(TINY)
    return {"bundled": bundled, "random": cases.random_model(config, torch.device("cpu"), torch.float32)}


def check_parity(setting: Setting, budget: Budget, report: Report) -> None:
    """Logits and greedy tokens of each modality, on the CPU and on the device, in float32; alone and in a batch."""
    exact(partial(_check_parity, setting, report))


def _check_parity(setting: Setting, report: Report) -> None:
    for name, model in models().items():
        there = copy.deepcopy(model).to(setting.device)
        with setting.phi(model) as here_phi, setting.phi(there) as there_phi:
            for request, modality in zip(requests(), Modality, strict=True):
                batch = here_phi.processor([request])
                with torch.inference_mode():
                    error = relative_error(there(batch).cpu(), model(batch))
                _add(report, "parity", f"{name}, {modality}: error of logits", error, error < TOLERANCE)
            expected, together = _greedy(here_phi, requests()), _greedy(there_phi, requests())
            alone = [_greedy(there_phi, [request])[0] for request in requests()]
        _add(report, "parity", f"{name}: rows with the tokens of the CPU", *_equal(together, expected))
        _add(report, "parity", f"{name}: rows with the tokens that they have alone", *_equal(together, alone))


def check_compiled(setting: Setting, budget: Budget, report: Report) -> None:
    """Captured and compiled decoding, of one set of adapters and of several, equal plain decoding, in float32."""
    exact(partial(_check_compiled, setting, budget, report))


def _check_compiled(setting: Setting, budget: Budget, report: Report) -> None:
    model = models()["random"].to(setting.device)
    lengths: dict[str, list[tuple[tuple[str, ...], int]]] = {
        "same": [((), 5), ((), 130)],
        "mixed": [((), 5), (("speech",), 130), (("vision",), 64)],
    }
    for how in ("captured", "compiled"):
        for name, rows in lengths.items():
            start = time.perf_counter()
            error = step_error(setting, model, rows, how)
            note = f"{time.perf_counter() - start:.1f} s, the first step included"
            what = f"{how}, rows with {name} adapters: error of logits"
            _add(report, "compiled", what, error, error < TOLERANCE, note)
    for how in ("plain", "captured", "compiled"):
        error = half_error(setting, how)
        what = f"{how}, ragged rows in float16: error of logits, by norm"
        _add(report, "compiled", what, error, error < HALF_TOLERANCE)
    need(budget, 30 if setting.device.type == "cuda" else 1, "compiled decoding through the engine")
    one = [Request(f"{number}. What do you know?") for number in range(2)]
    with setting.phi(model, "plain") as plain:
        expected = _greedy(plain, one)
    for how in ("captured", "compiled"):
        with setting.phi(model, how) as other:
            _add(
                report,
                "compiled",
                f"{how}, rows with the tokens of plain decoding",
                *_equal(_greedy(other, one), expected),
            )


@torch.inference_mode()
def step_error(
    setting: Setting, model: Phi4MMModel, rows: Sequence[tuple[tuple[str, ...], int]], how: str = "compiled"
) -> float:
    """Between the logits of captured or compiled, and plain decoding of rows with these adapters and lengths, over
    three steps."""
    plain, compiled = (setting.runner(kind, 8)(model, 1024) for kind in ("plain", how))
    rows = sorted(rows)
    extents = [Extent(256 * number, 256) for number in range(len(rows))]
    for runner in (plain, compiled):
        for extent, (adapters, length) in zip(extents, rows, strict=True):
            runner.prefill([Chunk(extent, 0, [7 + place % 90 for place in range(length)], (), adapters, False, True)])
    worst = 0.0
    for step in range(3):
        tokens = [
            Token(extent, 11 + step, length + step, adapters, False)
            for extent, (adapters, length) in zip(extents, rows, strict=True)
        ]
        worst = max(worst, relative_error(compiled.decode(tokens), plain.decode(tokens)))
    return worst


@torch.inference_mode()
def half_error(setting: Setting, how: str) -> float:
    """Between the logits in float16 on the device and those of the same weights in float32 on the CPU: of rows of
    different lengths, each prefilled in two chunks, then over three decode steps."""
    there = models()["random"].half()
    here = copy.deepcopy(there).float()
    runners = [setting.runner("plain", 8)(here, 1024), setting.runner(how, 8)(there.to(setting.device), 1024)]
    lengths, adapters = [5, 130, 64, 200], ("speech",)
    extents = [Extent(256 * number, 256) for number in (2, 0, 3, 1)]
    worst = 0.0
    for part in ("first", "last"):
        chunks = []
        for extent, length in zip(extents, lengths, strict=True):
            start, end = (0, length // 3) if part == "first" else (length // 3, length)
            token_ids = [7 + place % 90 for place in range(start, end)]
            chunks.append(Chunk(extent, start, token_ids, (), adapters, False, part == "last"))
        expected, logits = (runner.prefill(chunks).cpu().float() for runner in runners)
        if part == "last":
            worst = max(worst, float((logits - expected).norm() / expected.norm()))
    for step in range(3):
        tokens = [
            Token(extent, 11 + step, length + step, adapters, False)
            for extent, length in zip(extents, lengths, strict=True)
        ]
        expected, logits = (
            runner.decode(sorted(tokens, key=lambda token: token.order)).cpu().float() for runner in runners
        )
        worst = max(worst, float((logits - expected).norm() / expected.norm()))
    return worst


def check_training(setting: Setting, budget: Budget, report: Report) -> None:
    """One step of each kind of stage in bfloat16 autocast: the loss is finite, and what is trained changes."""
    model = cases.random_model(setting.config, setting.device, setting.dtype)
    for kind in ("projector", "adapter", "tower"):
        need(budget, 5 if setting.device.type == "cuda" else 0.1, f"a training step of the {kind}")
        seconds, loss, changed = training_step(setting, model, kind)
        passed = changed and loss == loss and abs(loss) != float("inf")
        note = f"{_NUM_CLIPS} clips of {setting.clip_seconds:g} s; loss {loss:.3f}"
        report.add(Figure("training", f"a step of the {kind}", seconds, "s", passed=passed, note=note))
    del model
    setting.free()


def training_step(setting: Setting, model: Phi4MMModel, kind: str) -> tuple[float, float, bool]:
    """Seconds, loss, and whether every weight that is trained got a gradient and changed as a whole."""
    parts = trained_parts(model, kind)
    model.requires_grad_(False).train()
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)  # bfloat16 does not show much less
    with setting.phi(model) as phi:
        clip = cases.clip(setting.clip_seconds)
        batch = phi.processor([Request(cases.PROMPT, audios=[(clip, cases.SAMPLING_RATE)])] * _NUM_CLIPS)
    batch = batch.to(setting.device)
    before = [parameter.detach().clone() for parameter in parameters]
    setting.synchronise()
    start = time.perf_counter()
    with torch.autocast(setting.device.type, dtype=torch.bfloat16):
        logits = model(batch)
        loss = F.cross_entropy(logits[:, -9:-1].flatten(0, 1).float(), batch.token_ids[:, -8:].flatten())
    loss.backward()
    optimizer.step()
    setting.synchronise()
    seconds = time.perf_counter() - start
    changed = all(not torch.equal(one, other.detach()) for one, other in zip(before, parameters, strict=True))
    gradients = all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    model.eval().requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return seconds, float(loss.detach()), bool(changed and gradients)


def trained_parts(model: Phi4MMModel, kind: str) -> list[nn.Module]:
    """What a stage of this kind trains of the model's speech."""
    assert model.speech is not None
    if kind == "projector":
        return [model.speech.projectors["speech"]]
    if kind == "tower":
        return [model.speech.tower.blocks, model.speech.projectors["speech"]]
    return [lora for name, lora in model.decoder.named_modules() if isinstance(lora, LoRA) and name.endswith(".speech")]


def relative_error(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over largest magnitude."""
    return float((ours - other).abs().max() / other.abs().max())


def _greedy(phi: Phi4MM, rows: Sequence[Request]) -> list[tuple[int, ...]]:
    phi.drop_caches()
    sampling = SamplingParams(max_new_tokens=_NEW_TOKENS)
    return [reply.token_ids for reply in phi.chat_batch([replace(row, sampling=sampling) for row in rows])]


def _equal(one: Sequence[object], other: Sequence[object]) -> tuple[float, bool]:
    same = sum(a == b for a, b in zip(one, other, strict=True))
    return float(same), same == len(other)


def _add(report: Report, section: str, name: str, value: float, passed: bool, note: str = "") -> None:
    report.add(Figure(section, name, value, "", passed=passed, note=note))

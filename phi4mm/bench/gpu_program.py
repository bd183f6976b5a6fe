"""Every check and figure of a GPU, in sections, each in its share of the time."""

from __future__ import annotations

import importlib.util
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from phi4mm.bench.gpu_checks import check_compiled, check_parity, check_training
from phi4mm.bench.gpu_report import Budget, OutOfTime, Report
from phi4mm.bench.gpu_setting import Setting
from phi4mm.bench.gpu_speed import Speed
from phi4mm.devices import describe

Section = Callable[[Budget, Report], None]


def sections(setting: Setting) -> list[tuple[str, float, Section]]:
    """In their order: the name, the share of the time that it may take, and what it does."""
    speed = Speed(setting)
    return [
        ("device", 0.05, speed.limits),
        ("parity", 0.15, lambda budget, report: check_parity(setting, budget, report)),
        ("training", 0.1, lambda budget, report: check_training(setting, budget, report)),
        ("compiled", 0.2, lambda budget, report: check_compiled(setting, budget, report)),
        ("prefill", 0.1, speed.prefill),
        ("engine", 0.2, speed.engine),
        ("ASR", 0.15, speed.asr),
        ("decode", 0.3, speed.decode),
        ("beside the port", 0.3, speed.port),
        ("engine, compiled", 0.2, speed.compiled_engine),
    ]


def run(setting: Setting, seconds: float, out: Path, only: str = "") -> Report:
    """Run every section whose name holds ``only``; what goes wrong in one of them is written down. The report is
    written after each, so that a program that is killed leaves what it found."""
    report = Report(machine(setting))
    budget = Budget(seconds)
    for name, share, section in sections(setting):
        if only not in name and name != "device":  # whose figures the others are shares of
            continue
        missing = [module for module in ("transformers", "peft") if importlib.util.find_spec(module) is None]
        if name == "beside the port" and missing:
            report.skipped[name] = f"{' and '.join(missing)} cannot be imported"
            continue
        start = time.monotonic()
        try:
            section(budget.part(share * seconds), report)
        except OutOfTime as error:
            report.skipped[name] = str(error)
        except Exception as error:
            traceback.print_exc()
            report.errors[name] = f"{type(error).__name__}: {' '.join(str(error).split()):.500}"
        report.seconds[name] = time.monotonic() - start
        report.write(out)
    return report


def machine(setting: Setting) -> dict[str, Any]:
    """What the figures depend on."""
    info = describe(setting.device, setting.dtype, prepacked=False, why="")
    return {
        "device": info.processor,
        "instructions": info.instruction_set,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

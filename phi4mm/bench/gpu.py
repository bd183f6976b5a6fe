"""``python -m phi4mm.bench.gpu``: every check and figure of a GPU, in a few minutes, as JSON and as a table.

It needs no file beside the bundled checkpoint, no decoder of audio and no network: models of Microsoft's sizes have
random weights that are made on the device. ``--tiny`` runs all of it on the CPU in small, to test the program itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from phi4mm.bench.gpu_checks import check_compiled, check_parity, check_training
from phi4mm.bench.gpu_report import Budget, OutOfTime, Report
from phi4mm.bench.gpu_setting import Setting, full_setting, tiny_setting
from phi4mm.bench.gpu_speed import Speed
from phi4mm.devices import describe, resolve_device
from phi4mm.errors import Phi4MMError

PROGRAM = "phi4mm.bench.gpu"
SECONDS = 480.0  # that the program may take in all

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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.partition("\n")[2])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where gpu.json and gpu.md are written")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N", help=f"default: {SECONDS:.0f}")
    parser.add_argument("--only", default="", metavar="WORD", help="only sections whose name holds this")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a check failed or a section ended with an error."""
    options = make_parser().parse_args(arguments)
    try:
        setting = tiny_setting(torch.device("cpu")) if options.tiny else full_setting(resolve_device(options.device))
    except Phi4MMError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    report = run(setting, options.seconds, options.out, options.only)
    report.write(options.out)
    print(report.table())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())

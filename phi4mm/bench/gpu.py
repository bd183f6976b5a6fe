"""``python -m phi4mm.bench.gpu``: every check and figure of a GPU, in a few minutes, as JSON and as a table.

It needs no file beside the bundled checkpoint, no decoder of audio and no network: models of Microsoft's sizes have
random weights that are made on the device. ``--tiny`` runs all of it on the CPU in small, to test the program itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from phi4mm.cli import exit_code

PROGRAM = "phi4mm.bench.gpu"
SECONDS = 480.0  # that the program may take in all


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

    def command() -> int:
        options = make_parser().parse_args(arguments)
        import torch

        from phi4mm.bench.gpu_program import run
        from phi4mm.bench.gpu_setting import full_setting, tiny_setting
        from phi4mm.devices import resolve_device

        setting = tiny_setting(torch.device("cpu")) if options.tiny else full_setting(resolve_device(options.device))
        report = run(setting, options.seconds, options.out, options.only)
        report.write(options.out)
        print(report.table())
        return 0 if report.passed else 1

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

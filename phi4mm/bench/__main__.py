"""``python -m phi4mm.bench``: how fast on this machine, side by side with transformers on the same weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from phi4mm.cli import exit_code, positive, prepare_environment, program_name
from phi4mm.environment import default_threads

PROGRAM = "phi4mm.bench"
PRESETS = ("tiny", "small", "full")  # the keys of ``cases.PRESETS``, without torch


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name(PROGRAM),
        description="Time this package and transformers' port with peft's adapters: the same weights, type and threads,"
        " two processes that take turns, medians.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="default: tiny, the bundled checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: bfloat16")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="quantise this side's linears")
    parser.add_argument(
        "--threads", type=positive, default=default_threads(), metavar="N", help="default: every core for this process"
    )
    parser.add_argument(
        "--repeats", type=positive, default=5, metavar="N", help="counted turns of each side (default: 5)"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only rows whose name holds this")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="leave transformers out")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="one side after the other, where both do not fit into memory"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the model is written, and used again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> int:
        prepare_environment()  # for the processes of both sides
        parser = make_parser()
        options = parser.parse_args(arguments)
        if options.folder is not None and options.folder.exists() and not options.folder.is_dir():
            parser.error(f"--folder {options.folder}: is a file, expected a folder")
        if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
            parser.error(f"--json {options.json}: expected a file in a folder that is there")
        from phi4mm.bench.cases import PRESETS as presets
        from phi4mm.bench.comparison import run, wanted

        wanted(presets[options.preset], options.only)
        run(options)
        return 0

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

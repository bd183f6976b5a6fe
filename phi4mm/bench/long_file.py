"""``python -m phi4mm.bench.long_file``: a long recording made of clips, against the clips one by one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from phi4mm.cli import exit_code, prepare_environment

PROGRAM = "phi4mm.bench.long_file"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__)
    parser.add_argument("--data", type=Path, help="manifest of clips: JSON lines with audio_filepath and text")
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument(
        "--audible",
        type=float,
        default=25.0,
        metavar="DB",
        help="a clip begins where it is less than this below its loudest (default: 25; more for clips without noise)",
    )
    parser.add_argument(
        "--align", action="store_true", help="take a clip's start from PocketSphinx's alignment of its text"
    )
    parser.add_argument("--file", type=Path, help="only transcribe this file, and print what was found as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> int:
        prepare_environment()  # for the process that transcribes
        parser = make_parser()
        options = parser.parse_args(arguments)
        if (options.file is None) == (options.data is None):
            parser.error("--data is needed, or --file")
        if options.data is not None and not options.data.is_file():
            parser.error(f"--data {options.data}: there is no such file")
        from phi4mm.bench.long_recording import measure, transcribe

        if options.file is not None:
            print(json.dumps(asdict(transcribe(options.file))))
        else:
            measure(options.data, minutes=options.minutes, audible=options.audible, align=options.align)
        return 0

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

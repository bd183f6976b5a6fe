"""``python -m eval_asr run | score | compare | report``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from phi4mm.cli import exit_code

PROGRAM = "eval_asr"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that it cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")

    def command() -> int:
        from eval_asr.command import run_command  # here, where Ctrl-C is answered

        return run_command(arguments)

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

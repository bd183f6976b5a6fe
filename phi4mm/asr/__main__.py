"""``python -m phi4mm.asr FILE...``: what is said in each file, on standard output or in files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from phi4mm.cli import exit_code

PROGRAM = "phi4mm.asr"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> int:
        from phi4mm.asr.command import run  # here, so that Ctrl-C is answered as early as can be

        return run(sys.argv[1:] if arguments is None else arguments)

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

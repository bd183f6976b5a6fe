"""``python -m phi4mm "question" --image FILE --audio FILE``: the answer, streamed to standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from phi4mm.cli import exit_code

PROGRAM = "phi4mm"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> int:
        from phi4mm.ask import run  # here, so that Ctrl-C is answered as early as can be

        return run(arguments)

    return exit_code(PROGRAM, command)


if __name__ == "__main__":
    sys.exit(main())

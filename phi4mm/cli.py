"""What the command lines share: the options that name a model, exit codes, and how an error is reported."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

from phi4mm.environment import prepare_environment as prepare_environment
from phi4mm.errors import Phi4MMError
from phi4mm.interrupts import Interrupted, Interrupts, exits_at_once
from phi4mm.interrupts import report as report

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM


class StandardOutputError(Exception):
    """Standard output cannot be written; ``error`` is the system's reason."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.error = error


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--device``, ``--dtype``, ``--quantize`` and ``--threads``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="SOURCE", help="a checkpoint folder or a hub id (default: the bundled checkpoint)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision (default: auto, the fastest on the device that loses nothing of the checkpoint)",
    )
    group.add_argument(
        "--quantize", choices=("int8", "int4"), help="store the decoder in so many bits: less memory, faster decoding"
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", help="on a CPU (default: as many as there are cores for this process)"
    )


def positive(text: str) -> int:
    """The type of an option that is a whole number of 1 or more."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def program_name(module: str) -> str:
    """How a command was started, for its usage: the name of its console script, or ``python -m MODULE``."""
    name = PurePath(sys.argv[0]).stem
    return name if name.startswith("phi4mm") else f"python -m {module}"


def load_model(options: argparse.Namespace) -> Phi4MM:
    """The model that the options name. Ctrl-C ends the process at once.

    Raises:
        Phi4MMError: it cannot be loaded.
    """
    prepare_environment(options.threads)
    with exits_at_once():
        import torch

        from phi4mm.api import Phi4MM

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        return Phi4MM.from_pretrained(
            options.model, device=options.device, dtype=options.dtype, quantize=options.quantize
        )


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command.

    Ctrl-C, SIGTERM and SIGHUP raise a ``KeyboardInterrupt`` in it, whose notes (``add_note``) say what was left; a
    second one ends the process at once.

    Args:
        program: its name, for messages.
        command: returns its exit code.

    Returns:
        That code; after an error 1, and after Ctrl-C 130 (SIGTERM 143, SIGHUP 129), each with one line on standard
        error; 1 where whoever read its output has gone.
    """
    prepare_streams()
    with Interrupts(program) as interrupts, _quiet_exit():
        try:
            code = command()
        except (BrokenPipeError, StandardOutputError) as error:
            code = 1
            # Otherwise Python would try to write the rest when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, StandardOutputError) and not isinstance(error.error, BrokenPipeError):
                report(program, error)
        except (Phi4MMError, OSError) as error:
            code = 1
            if interrupts.first is None:
                report(program, error)
        except KeyboardInterrupt as interrupt:
            interrupts.first = interrupts.first or Interrupted(program)
            for note in getattr(interrupt, "__notes__", ()) if interrupt is not interrupts.first else ():
                interrupts.first.add_note(note)
        except Exception:
            if interrupts.first is None:  # otherwise a library made another exception of it
                raise
        if interrupts.first is not None:
            report(program, "; ".join([str(interrupts.first), *getattr(interrupts.first, "__notes__", ())]))
            return interrupts.first.code
        return code


@contextmanager
def _quiet_exit() -> Iterator[None]:
    """Ctrl-C after all is done, while Python puts the libraries away, is passed over."""
    try:
        yield
    finally:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the last that is registered comes first


def write_out(text: str) -> None:
    """Write to standard output at once.

    Raises:
        StandardOutputError: it cannot be written, for example as its reader has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise StandardOutputError(error) from error


def prepare_streams() -> None:
    """Make printing safe: a character that standard output cannot encode is written as an escape (``\\u4e09``), and
    where a standard stream is closed, no file that is opened later takes its place."""
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass  # reading is all that it allows: what is written to a closed standard output is an error
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")

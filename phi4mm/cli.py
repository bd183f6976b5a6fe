"""What the command lines share: the options that name a model, exit codes, and how an error is reported."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from phi4mm.environment import prepare_environment as prepare_environment
from phi4mm.errors import Phi4MMError

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


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
    group.add_argument("--threads", type=int, metavar="N", help="on a CPU (default: as many as it has cores)")


def load_model(options: argparse.Namespace) -> Phi4MM:
    """The model that the options name.

    Raises:
        Phi4MMError: it cannot be loaded.
    """
    if options.threads is not None and options.threads < 1:
        raise Phi4MMError(f"--threads is {options.threads}; expected 1 or more")
    prepare_environment(options.threads)
    import torch

    from phi4mm.api import Phi4MM

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return Phi4MM.from_pretrained(options.model, device=options.device, dtype=options.dtype, quantize=options.quantize)


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command.

    Args:
        program: its name, for messages.
        command: returns its exit code.

    Returns:
        That code; after an error 1, and after Ctrl-C 130, each with one line on standard error; 1 where whoever read
        its output has gone.
    """
    try:
        return command()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Phi4MMError as error:
        report(program, error)
        return 1
    except KeyboardInterrupt:
        report(program, "interrupted")
        return INTERRUPTED


def report(program: str, error: Exception | str) -> None:
    """Report an error in one line on standard error."""
    message = " ".join(str(error).split())
    print(f"{program}: {message}", file=sys.stderr, flush=True)

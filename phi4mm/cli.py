"""What the command lines share: the options that name a model, and how an error is told."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM

KERNELS_KEPT = "64"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--device`` and ``--dtype``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="SOURCE", help="a checkpoint folder or a hub id (default: the bundled checkpoint)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision (default: auto, the checkpoint's own)",
    )


def load_model(options: argparse.Namespace) -> Phi4MM:
    """The model that the options name.

    Raises:
        Phi4MMError: it cannot be loaded.
    """
    from phi4mm.api import Phi4MM
    from phi4mm.engine.prepack import can_prepack, prepack_decoder

    bound_kernel_caches()
    phi4mm = Phi4MM.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    if can_prepack(phi4mm.model.device, phi4mm.model.dtype):
        prepack_decoder(phi4mm.model)
    return phi4mm


def bound_kernel_caches() -> None:
    """Let oneDNN, and PyTorch's caches over it, keep few kernels: to be called before the first of them runs.

    In bfloat16 each length of a clip brings kernels of its own. By default 1024 are kept: up to 0.8 GB.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", KERNELS_KEPT)


def report(program: str, error: Exception) -> None:
    """Tell an error in one line on standard error."""
    message = " ".join(str(error).split())
    print(f"{program}: {message}", file=sys.stderr, flush=True)

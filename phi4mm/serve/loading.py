"""The model that is served."""

from __future__ import annotations

import torch

from phi4mm.api import Phi4MM
from phi4mm.serve.options import ModelOptions


def load_model(options: ModelOptions) -> Phi4MM:
    """Load the checkpoint and the adapters that the options name.

    Raises:
        Phi4MMError: one of them cannot be loaded.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = Phi4MM.from_pretrained(
        options.source,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        cache_tokens=options.cache_tokens,
        max_rows=options.max_rows,
    )
    try:
        for name, folder in options.adapters.items():
            model.adapters.load(name, folder)
    except BaseException:
        model.close()
        raise
    return model

"""Run, measure and extend Phi-4-multimodal. Importing this is light: each name is imported when it is first used, and
torch when a model is made."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM
    from phi4mm.errors import (
        AdapterError,
        AudioError,
        BatchError,
        CheckpointError,
        ClosedError,
        ImageError,
        Phi4MMError,
        PromptError,
    )
    from phi4mm.types import (
        Modality,
        OutputFormat,
        Reply,
        Request,
        Route,
        SamplingParams,
        Segment,
        TokenLogprob,
        Transcript,
        Usage,
        Word,
    )
    from phi4mm.workers import Workers

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "AudioError",
    "BatchError",
    "CheckpointError",
    "ClosedError",
    "ImageError",
    "Modality",
    "OutputFormat",
    "Phi4MM",
    "Phi4MMError",
    "PromptError",
    "Reply",
    "Request",
    "Route",
    "SamplingParams",
    "Segment",
    "TokenLogprob",
    "Transcript",
    "Usage",
    "Word",
    "Workers",
    "__version__",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    own = {"Phi4MM": "phi4mm.api", "Workers": "phi4mm.workers"}
    home = own.get(name, "phi4mm.errors" if name.endswith("Error") else "phi4mm.types")
    globals()[name] = getattr(import_module(home), name)
    return globals()[name]

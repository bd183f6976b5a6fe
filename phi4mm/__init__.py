"""Run, measure and extend Phi-4-multimodal. Importing this is light: torch is imported when a model is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM
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
    if name == "Phi4MM":
        from phi4mm.api import Phi4MM

        return Phi4MM
    if name == "Workers":
        from phi4mm.workers import Workers

        return Workers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What both kinds of media files share: how a source is called in errors, and that it is never a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from phi4mm.errors import shortened

LONGEST_NAME = 300  # characters of a source that an error quotes


def source_name(source: Any, default: str) -> str:
    """The path of a source as it was given, or of the file that it was opened from; ``default`` where it has none."""
    path = source
    if not isinstance(source, str | os.PathLike):
        path = getattr(source, "name", None) or getattr(source, "filename", None)
    return shortened(os.fsdecode(path) if isinstance(path, str | os.PathLike) else "", LONGEST_NAME) or default


def unwrapped(source: Any) -> Any:
    """A source of media as a row of Hugging Face's ``datasets`` holds it, in one of our own forms; others as they are.

    Rows hold ``{"array": ..., "sampling_rate": ...}``, ``{"bytes": ..., "path": ...}``, or an object that decodes the
    audio when it is asked to (torchcodec's ``AudioDecoder``).
    """
    if isinstance(source, Mapping):
        if "array" in source and "sampling_rate" in source:
            return source["array"], source["sampling_rate"]
        held = [source[key] for key in ("bytes", "path") if source.get(key) is not None]
        return held[0] if held else source
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return decoded.data.T, decoded.sample_rate
    return source


def is_url(source: Any) -> bool:
    """Whether a source is a web address or a data URI, which are refused: nothing is downloaded unasked."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://", "data:"))

"""What both kinds of media files share: how a source is called in errors, and that it is never a URL."""

from __future__ import annotations

import os
from typing import Any

from phi4mm.errors import shortened

LONGEST_NAME = 300  # characters of a source that an error quotes


def source_name(source: Any, default: str) -> str:
    """The path of a source as it was given, or of the file that it was opened from; ``default`` where it has none."""
    path = source
    if not isinstance(source, str | os.PathLike):
        path = getattr(source, "name", None) or getattr(source, "filename", None)
    return shortened(os.fsdecode(path) if isinstance(path, str | os.PathLike) else "", LONGEST_NAME) or default


def is_url(source: Any) -> bool:
    """Whether a source is a web address, which is refused: nothing is downloaded behind the user's back."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))

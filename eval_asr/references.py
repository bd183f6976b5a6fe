"""References as the corpus has them now: texts that were mended since a run need no new run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval_asr.errors import ScoringWarning, SourceError
from eval_asr.records import RunSettings
from eval_asr.results import Row
from eval_asr.sources import open_source


def with_references_of_now(
    rows: Sequence[Row], settings: RunSettings | None, manifest: Path
) -> tuple[list[Row], RunSettings | None]:
    """The rows with the references that their corpus has now, and the settings with the number of its clips.

    A warning says how many changed. All stays as it is where the corpus is a hub's data set or not on this machine.

    Args:
        rows: of the manifest.
        settings: beside it, if any.
        manifest: for messages.
    """
    if settings is None or settings.corpus is None or not Path(settings.corpus).exists():
        return list(rows), settings
    try:
        clips = list(open_source(settings.corpus, language=settings.language).open_clips())
    except SourceError as error:
        _warn(f"{manifest.name}: its corpus cannot be read now ({error}); scored with the references of the run")
        return list(rows), settings
    texts = {clip.audio_filepath: clip.text for clip in clips}
    current = [replace(row, text=texts.get(row.audio_filepath, row.text)) for row in rows]
    changed = sum(row.text != before.text for row, before in zip(current, rows, strict=True))
    if changed:
        _warn(f"{manifest.name}: {_clips(changed)} a new reference in {settings.corpus}; scored with that")
    gone = sum(row.audio_filepath not in texts for row in rows)
    if gone:
        _warn(f"{manifest.name}: {settings.corpus} no longer has {gone} of its {len(rows)} clips; they count")
    return current, replace(settings, corpus_clips=len(texts))


def _clips(number: int) -> str:
    return "1 clip has" if number == 1 else f"{number} clips have"


def _warn(message: str) -> None:
    warnings.warn(message, ScoringWarning, stacklevel=3)

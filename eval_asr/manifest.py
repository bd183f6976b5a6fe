"""NeMo's manifests: one JSON object a line, with ``audio_filepath`` and ``text``.

The keys are those of NeMo's ``collections/common/parts/preprocessing/manifest.py``: ``offset`` and ``duration`` name a
part of the audio; the text may stand in a file, ``text_filepath``; files are relative to the manifest's folder, or else
to the current one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from eval_asr.clips import Clip, Source, Span, local_source, shown
from eval_asr.errors import SourceError
from eval_asr.results import is_seconds, is_text

_Value = TypeVar("_Value")

AUDIO_KEYS = ("audio_filepath", "audio_filename")
TEXT_FILE_KEYS = ("text_filepath", "text_filename")


def manifest_source(spec: str, path: Path, language: str) -> Source:
    """A manifest as a source.

    Args:
        spec: as the user named it.
        path: its absolute path.
        language: two-letter code.

    Raises:
        SourceError: it cannot be read, or one of its lines is wrong.
    """
    lines = list(_objects(path))
    root = _root(path.parent, [values for _, values in lines])
    clips = [_checked(path, number, partial(_clip, values, root)) for number, values in lines]
    return local_source(spec, path, path.parent.name, path.stem, language, clips, audio_root=root)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a manifest's lines, each with the number of its line from 1; blank lines are none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); name a JSON-lines manifest") from error
    if content.startswith(b"PAR1"):
        raise SourceError(f"{path}: is a parquet file; name its folder as {path.parent}::train (or another split)")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if text := _checked(path, number, partial(_decoded, line)).strip("\ufeff \t\r"):
            yield number, _checked(path, number, partial(_object, text))


def _checked(path: Path, number: int, read: Callable[[], _Value]) -> _Value:
    try:
        return read()
    except ValueError as error:
        raise SourceError(f"{path}: line {number} {error}; mend or remove the line") from error


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start + 1} is 0x{line[error.start]:02x})") from error


def _object(line: str) -> dict[str, Any]:
    wanted = "expected an object with audio_filepath and text, all in one line"
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, column {error.colno}); {wanted}") from error
    except RecursionError as error:
        raise ValueError(f"is JSON that is nested too deep; {wanted}") from error
    if not isinstance(values, dict):
        raise ValueError(f"is a {type(values).__name__}; {wanted}")
    return values


def _root(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The folder that relative names start from: the manifest's, or the current one if the first file lies there."""
    first = next((name for values in rows if isinstance(name := _first(values, AUDIO_KEYS), str)), "")
    here = Path.cwd()
    try:
        return here if not (folder / first).exists() and (here / first).is_file() else folder
    except (OSError, ValueError):  # a name that no file can have: reported when the clip is read
        return folder


def _clip(values: dict[str, Any], root: Path) -> Clip:
    name, text = _first(values, AUDIO_KEYS), _text(values, root)
    if not isinstance(name, str):
        raise ValueError(f"has no string 'audio_filepath'; it has {shown(values)}")
    if not name:
        raise ValueError("has an empty 'audio_filepath'")
    if not (is_text(name) and is_text(text)):
        raise ValueError("has half a surrogate pair (\\ud8..), which is no character")
    offset, duration, parent_id, chunk_index = map(values.get, ("offset", "duration", "parent_id", "chunk_index"))
    for key, seconds in (("offset", offset), ("duration", duration)):
        if seconds is not None and not is_seconds(seconds):
            raise ValueError(f"has the {key!r} {str(seconds)[:40]!r}, expected seconds")
    if (parent_id is None) != (chunk_index is None) or not isinstance(chunk_index, int | None):
        raise ValueError("has one of 'parent_id' and 'chunk_index' (a whole number) without the other")
    span = None if offset is None and duration is None else Span(offset, duration)
    return Clip(
        name if offset is None else f"{name}#t={_fragment(offset, duration)}",
        text,
        root / name,
        None if duration is None else float(duration),
        None if parent_id is None else str(parent_id),
        chunk_index,
        span,
    )


def _text(values: dict[str, Any], root: Path) -> str:
    text, file = values.get("text"), _first(values, TEXT_FILE_KEYS)
    if isinstance(text, str):
        return text
    if "text" in values or not isinstance(file, str):
        raise ValueError(f"has no string 'text'; it has {shown(values)}")
    try:
        return " ".join((root / file).read_text("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"has the 'text_filepath' {file[:200]!r}, which cannot be read ({reason})") from error


def _fragment(offset: float, duration: float | None) -> str:
    """A part of a file as in a media fragment of the W3C, which browsers play: "3.5,7" is from 3.5 s to 7 s."""
    return f"{_seconds(offset)}" if duration is None else f"{_seconds(offset)},{_seconds(offset + duration)}"


def _seconds(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _first(values: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((values[key] for key in keys if key in values), None)

"""Corpora: where clips and their references come from.

A source is named by a manifest (JSON lines), a LibriSpeech tree, a folder with ``metadata.csv``, or a data set of the
hub, ``org/name:config:split``. Audio is always decoded here, by ``phi4mm.inputs.audio``.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval_asr.clips import TEXT_COLUMNS, Clip, Source, first_of, named_apart
from eval_asr.errors import SourceError
from eval_asr.hub import hub_source

FILE_COLUMNS = ("file_name", "audio_filepath", "path")
AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")


def open_source(spec: str, *, streaming: bool = False, language: str | None = None) -> Source:
    """Find out what a source is, and read its lists (not its audio).

    Args:
        spec: a manifest, a folder, or ``org/name:config:split`` (``org/name::split`` without a configuration).
        streaming: read a hub's data set while it is downloaded.
        language: of the references; by default that of a multilingual set's name, and else English.

    Raises:
        SourceError: there is no such source, or a line of it is wrong.
    """
    path = Path(spec)
    language = language or language_of(spec)
    whole = Path(os.path.abspath(spec))  # names are as the user gave them: a link's, not those of what it leads to
    if path.is_file():
        return _local_source(spec, whole.parent, whole.parent.name, path.stem, language, list(_manifest_clips(path)))
    if (path / "metadata.csv").is_file():
        return _local_source(spec, whole, whole.name, "all", language, list(_table_clips(path)))
    if path.is_dir():
        clips = list(_librispeech_clips(path))
        if not clips:
            raise SourceError(
                f"{spec}: has neither a metadata.csv nor LibriSpeech's *.trans.txt; name a JSON-lines manifest, or add "
                "a metadata.csv with the columns file_name and text"
            )
        return _local_source(spec, whole, whole.parent.name, whole.name, language, clips)
    if spec.count(":") == 2:
        return hub_source(spec, streaming=streaming, language=language)
    raise SourceError(f"{spec}: there is no such file or folder; for a data set of the hub write org/name:config:split")


def language_of(spec: str) -> str:
    """The language in the name of a multilingual set's configuration, as in ``...multilingual...:fleurs_de:test``."""
    found = re.search(r"multilingual[^:]*:[^:]*_([a-z]{2}):", spec)
    return found[1] if found else "en"


def _local_source(spec: str, folder: Path, name: str, split: str, language: str, clips: list[Clip]) -> Source:
    if not clips:
        raise SourceError(f"{spec}: has no clips; write one a line")
    clips = list(named_apart(clips))
    return Source(spec, name or "data", "", split, language, folder, False, lambda: clips)


def _manifest_clips(path: Path) -> Iterator[Clip]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as UTF-8 text ({error}); name a JSON-lines manifest") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _manifest_clip(json.loads(line), path.parent)
            except json.JSONDecodeError as error:
                raise SourceError(
                    f"{path}: line {number} is not JSON ({error.msg}, column {error.colno}); expected an object with "
                    "audio_filepath and text; mend or remove the line"
                ) from error
            except ValueError as error:
                raise SourceError(f"{path}: line {number} {error}; mend or remove the line") from error


def _manifest_clip(values: Any, folder: Path) -> Clip:
    if not isinstance(values, dict):
        raise ValueError(f"is a {type(values).__name__}; expected an object with audio_filepath and text")
    for key in ("audio_filepath", "text"):
        if not isinstance(values.get(key), str):
            raise ValueError(f"has no string {key!r}")
    if any(0xD800 <= ord(letter) < 0xE000 for letter in values["audio_filepath"] + values["text"]):
        raise ValueError("has half a surrogate pair (\\ud8..), which is no character")
    if not values["audio_filepath"]:
        raise ValueError("has an empty 'audio_filepath'")
    seconds, parent_id, chunk_index = (values.get(key) for key in ("duration", "parent_id", "chunk_index"))
    if not (seconds is None or (isinstance(seconds, int | float) and 0 <= seconds < float("inf"))):
        raise ValueError(f"has the 'duration' {seconds!r}, expected seconds")
    if (parent_id is None) != (chunk_index is None) or not isinstance(chunk_index, int | None):
        raise ValueError("has one of 'parent_id' and 'chunk_index' (a whole number) without the other")
    return Clip(
        values["audio_filepath"],
        values["text"],
        folder / values["audio_filepath"],
        None if seconds is None else float(seconds),
        None if parent_id is None else str(parent_id),
        chunk_index,
    )


def _table_clips(folder: Path) -> Iterator[Clip]:
    path = folder / "metadata.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            file_column = first_of(FILE_COLUMNS, columns)
            text_column = first_of(TEXT_COLUMNS, columns)
            if file_column is None or text_column is None:
                raise SourceError(f"{path}: has the columns {', '.join(columns)}; expected file_name and text")
            for row in table:
                name, text = row[file_column], row[text_column]
                if not name or text is None:
                    raise SourceError(f"{path}: line {table.line_num} lacks a {file_column} or {text_column}; mend it")
                yield Clip(name, text, folder / name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error


def _librispeech_clips(root: Path) -> Iterator[Clip]:
    for transcript in sorted(root.rglob("*.trans.txt")):
        for number, line in enumerate(transcript.read_text("utf-8").splitlines(), start=1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            if not text:
                raise SourceError(f"{transcript}: line {number} has no text after {name!r}; mend or remove the line")
            candidates = [transcript.parent / (name + suffix) for suffix in AUDIO_SUFFIXES]
            audio = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
            yield Clip(audio.relative_to(root).as_posix(), text, audio)

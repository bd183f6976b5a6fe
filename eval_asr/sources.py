"""Corpora: where clips and their references come from.

A source is named by a manifest (JSON lines), a LibriSpeech tree, a folder with ``metadata.csv``, or a data set of the
hub, ``org/name:config:split``. Audio is always decoded by ``phi4mm.inputs.audio``.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from eval_asr.clips import TEXT_COLUMNS, Clip, Source, first_of, local_source, shown, writable
from eval_asr.errors import SourceError
from eval_asr.hub import hub_source
from eval_asr.languages import language_code
from eval_asr.manifest import manifest_source

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
    language = language_code(language or language_of(spec))
    whole = Path(os.path.abspath(spec))  # names are as the user gave them: a link's, not those of what it leads to
    try:
        is_file, is_folder, has_table = path.is_file(), path.is_dir(), (path / "metadata.csv").is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or a folder that may not be looked into
        raise SourceError(f"{spec[:200]}: cannot be read ({_reason(error)}); name a manifest or a folder") from error
    if is_file:
        return manifest_source(spec, whole, language)
    if has_table:
        return local_source(spec, whole, whole.name, "all", language, list(_table_clips(path)))
    if is_folder:
        clips = list(_librispeech_clips(path))
        if not clips:
            raise SourceError(
                f"{spec}: has neither a metadata.csv nor LibriSpeech's *.trans.txt; name a JSON-lines manifest, or add "
                f"a metadata.csv with the columns file_name and text; a folder of parquet files is {spec}::train"
            )
        return local_source(spec, whole, whole.parent.name, whole.name, language, clips)
    if spec.count(":") == 2:
        return hub_source(spec, streaming=streaming, language=language)
    raise SourceError(
        f"{spec[:200]}: there is no such file or folder; for a data set of the hub write org/name:config:split"
    )


def language_of(spec: str) -> str:
    """The language in the name of a multilingual set's configuration, as in ``...multilingual...:fleurs_de:test``."""
    found = re.search(r"multilingual[^:]*:[^:]*_([a-z]{2}):", spec)
    return found[1] if found else "en"


def _table_clips(folder: Path) -> Iterator[Clip]:
    path = folder / "metadata.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or []
            file_column = first_of(FILE_COLUMNS, columns)
            text_column = first_of(TEXT_COLUMNS, columns)
            if file_column is None or text_column is None:
                raise SourceError(f"{path}: has the columns {shown(columns)}; expected file_name and text")
            for row in table:
                name, text = row[file_column], row[text_column]
                if not name or text is None:
                    raise SourceError(f"{path}: line {table.line_num} lacks a {file_column} or {text_column}; mend it")
                yield Clip(name, text, folder / name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV in UTF-8 ({_reason(error)}); mend it") from error


def _librispeech_clips(root: Path) -> Iterator[Clip]:
    for transcript in sorted(root.rglob("*.trans.txt")):
        try:
            lines = transcript.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{transcript}: cannot be read as UTF-8 text ({_reason(error)}); mend it") from error
        for number, line in enumerate(lines, start=1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            if not text:
                raise SourceError(f"{transcript}: line {number} has no text after {name!r}; mend or remove the line")
            candidates = [transcript.parent / (name + suffix) for suffix in AUDIO_SUFFIXES]
            audio = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
            yield Clip(writable(audio.relative_to(root).as_posix()), text, audio)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error))[:200]

"""Data sets of the hub, through the ``datasets`` library; the audio is left for us to decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from eval_asr.clips import (
    TEXT_COLUMNS,
    Clip,
    Source,
    StoredAudio,
    first_of,
    named_apart,
    shown,
    stored_audio,
    writable,
)
from eval_asr.errors import SourceError
from eval_asr.results import is_seconds
from phi4mm.errors import install_hint

ID_COLUMNS = ("id", "file_name")
DURATION_COLUMNS = ("audio_length_s", "duration")

# Sets of chunks, whose references stand in another set, one a recording, and whose audio lies beside the table
# (open_asr_leaderboard, normalizer/data_utils.py).
CHUNKED = {"ArtificialAnalysis/Earnings22-Cleaned-AA-chunked": "ArtificialAnalysis/Earnings22-Cleaned-AA"}
CHUNK_FOLDER = "audio"


def hub_source(spec: str, *, streaming: bool, language: str) -> Source:
    """A data set by ``org/name:config:split``, or a folder with the files of one in place of its name.

    Raises:
        SourceError: it cannot be loaded, or has no column of audio or text.
    """
    path, config, split = spec.split(":")
    if path in CHUNKED:
        chunks = cache(partial(_chunks, spec))
        return Source(spec, path, config, split, language, None, None, False, chunks)
    dataset = _load(spec, path, config, split, streaming=streaming)
    text_column = _text_column(spec, dataset)
    columns = list(dataset.column_names or dataset.features or ())
    if "audio" not in columns:
        raise SourceError(f"{spec}: has the columns {shown(columns)}; expected one named audio")
    from datasets import Audio

    try:
        dataset = dataset.cast_column("audio", Audio(decode=False))
    except Exception as error:  # the library raises many kinds for a column of another type
        raise SourceError(
            f"{spec}: its column audio is no audio ({_one_line(error)}); expected files' bytes or paths"
        ) from error

    def clips() -> Iterator[Clip]:
        rows = dataset if streaming else dataset.remove_columns("audio")
        return named_apart(_clip(spec, row, index, text_column, dataset) for index, row in _rows(spec, rows))

    name = Path(path).resolve().name if Path(path).is_dir() else path
    opened = clips if streaming else cache(lambda: list(clips()))
    return Source(writable(spec), writable(name), config, split, language, None, None, streaming, opened)


def _rows(spec: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows, numbered from 0."""
    try:
        yield from enumerate(rows)
    except Exception as error:  # the library raises many kinds, for networks and damaged files
        raise SourceError(
            f"{spec}: cannot be read further ({_one_line(error)}); the results so far are kept: run it again"
        ) from error


def _chunks(spec: str) -> list[Clip]:
    """The clips of a chunked set, each with the reference of its whole recording."""
    from huggingface_hub import snapshot_download

    path, config, split = spec.split(":")
    chunks = _load(spec, path, config, split)
    recordings = _load(f"{CHUNKED[path]}::{split}", CHUNKED[path], "", split)
    text_column = _text_column(CHUNKED[path], recordings)
    texts = {str(row["id"]): row[text_column] for row in recordings.select_columns(["id", text_column])}
    pattern = f"{CHUNK_FOLDER}/*"
    try:
        folder = Path(snapshot_download(repo_id=path, repo_type="dataset", allow_patterns=[pattern])) / CHUNK_FOLDER
    except Exception as error:  # the library raises many kinds, for names, networks and permissions
        raise SourceError(f"{spec}: its {pattern} cannot be downloaded ({_one_line(error)})") from error
    clips = []
    for row in chunks:
        parent_id, name = str(row["parent_id"]), row["file_name"]
        if parent_id not in texts:
            raise SourceError(f"{spec}: {name} is of recording {parent_id!r}, which {CHUNKED[path]} lacks; update both")
        seconds = _first_value(DURATION_COLUMNS, row)
        clips.append(Clip(name, texts[parent_id], folder / name, seconds, parent_id, int(row["chunk_index"])))
    return list(named_apart(clips))


def _load(spec: str, path: str, config: str, split: str, *, streaming: bool = False) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SourceError(f"{spec}: needs the datasets library; {install_hint('eval')}") from error
    try:
        return load_dataset(path, config or None, split=split, streaming=streaming)
    except Exception as error:  # the library raises many kinds, for names, networks and permissions
        raise SourceError(f"{spec}: cannot be loaded ({_one_line(error)}); check org/name:config:split") from error


def _text_column(spec: str, dataset: Any) -> str:
    columns = list(dataset.column_names or dataset.features or ())
    column = first_of(TEXT_COLUMNS, columns)
    if column is None:
        raise SourceError(f"{spec}: has the columns {shown(columns)}; expected one named text")
    return column


def _clip(spec: str, row: Mapping[str, Any], index: int, text_column: str, dataset: Any) -> Clip:
    identity = _first_value(ID_COLUMNS, row)
    seconds = _first_value(DURATION_COLUMNS, row)
    parent_id = row.get("parent_id")
    text = row[text_column]
    if not isinstance(text, str | None):
        raise SourceError(f"{spec}: row {index + 1} has a {type(text).__name__} in {text_column}; expected a text")
    return Clip(
        audio_filepath=f"sample_{index}" if identity is None else Path(str(identity)).name or f"sample_{index}",
        text=text or "",
        audio=stored_audio(row["audio"]) if "audio" in row else StoredAudio(dataset, index),
        seconds=float(seconds) if is_seconds(seconds) else None,
        parent_id=None if parent_id is None else str(parent_id),
        chunk_index=row.get("chunk_index"),
    )


def _first_value(wanted: Iterable[str], row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in wanted if row.get(name) not in (None, "")), None)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

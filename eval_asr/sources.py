"""Corpora: where clips and their references come from.

A source is named by a manifest (JSON lines), a LibriSpeech tree, a folder with ``metadata.csv``, or a data set of the
hub, ``org/name:config:split``. Audio is always decoded here, by ``phi4mm.inputs.audio``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval_asr.errors import SourceError
from phi4mm.errors import AudioError

# Names of the columns, in the order in which the leaderboard looks for the reference.
TEXT_COLUMNS = ("text", "raw_transcription", "sentence", "normalized_text", "transcript", "transcription")
FILE_COLUMNS = ("file_name", "audio_filepath", "path")
ID_COLUMNS = ("id", "file_name")
DURATION_COLUMNS = ("audio_length_s", "duration")
AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")


@dataclass(frozen=True)
class StoredAudio:
    """Audio inside a downloaded data set: it is read when it is wanted."""

    dataset: Any
    index: int

    def read(self) -> Path | bytes:
        return _hub_audio(self.dataset[self.index]["audio"])


@dataclass(frozen=True)
class Clip:
    """One clip of a corpus.

    Attributes:
        audio_filepath: what identifies it in its set.
        text: the reference.
        audio: a file, the bytes of one, or where to read them.
        seconds: the length that the corpus claims, for sorting; ``None`` where it does not say.
        parent_id: the recording that it is a chunk of, if any.
        chunk_index: the place of the chunk in its recording, from 0.
    """

    audio_filepath: str
    text: str
    audio: Path | bytes | StoredAudio
    seconds: float | None = None
    parent_id: str | None = None
    chunk_index: int | None = None

    def claimed_seconds(self) -> float:
        """The length for sorting: as claimed, or from the file's header; 0 where the header cannot be read."""
        if self.seconds is not None:
            return self.seconds
        import soundfile

        try:
            audio = self._content()
            return float(soundfile.info(io.BytesIO(audio) if isinstance(audio, bytes) else audio).duration)
        except (OSError, RuntimeError, AudioError):  # told when the clip is loaded
            return 0.0

    def load(self, sampling_rate: int) -> tuple[np.ndarray, float]:
        """Decode, mix down and resample.

        Returns:
            float32 samples [n] at ``sampling_rate``, and the duration in seconds.

        Raises:
            AudioError: the audio cannot be read.
        """
        import soxr

        from phi4mm.inputs.audio import load_audio

        waveform = load_audio(self._content(), name=self.audio_filepath)
        samples = waveform.samples
        if waveform.sampling_rate != sampling_rate:
            samples = soxr.resample(samples, waveform.sampling_rate, sampling_rate, quality="HQ")
        return samples, waveform.duration

    def _content(self) -> Path | bytes:
        return self.audio.read() if isinstance(self.audio, StoredAudio) else self.audio


@dataclass(frozen=True)
class Source:
    """A corpus that is ready to be read.

    Attributes:
        spec: as the user named it.
        path, name, split: the parts of its results' file name.
        language: of its references, as a two-letter code.
        audio_root: the folder that ``audio_filepath`` is relative to; ``None`` for a hub's data set.
        streamed: whether its clips pass by once, in the order of the corpus, too many to hold.
        open_clips: its clips, from the first one, each with an ``audio_filepath`` of its own.
    """

    spec: str
    path: str
    name: str
    split: str
    language: str
    audio_root: Path | None
    streamed: bool
    open_clips: Callable[[], Iterable[Clip]]


def open_source(spec: str, *, streaming: bool = False, language: str | None = None) -> Source:
    """Find out what a source is, and read its lists (not its audio).

    Args:
        spec: a manifest, a folder, or ``org/name:config:split`` (``org/name::split`` without a configuration).
        streaming: read a hub's data set while it is downloaded.
        language: of the references; by default what a multilingual set's name says, and else English.

    Raises:
        SourceError: there is no such source, or a line of it is wrong.
    """
    path = Path(spec)
    language = language or language_of(spec)
    if path.is_file():
        return _folder_source(spec, path.parent, path.stem, language, list(_manifest_clips(path)))
    if (path / "metadata.csv").is_file():
        return _folder_source(spec, path, "all", language, list(_table_clips(path)))
    if path.is_dir():
        clips = list(_librispeech_clips(path))
        if not clips:
            raise SourceError(
                f"{spec}: has neither a metadata.csv nor LibriSpeech's *.trans.txt; name a JSON-lines manifest, or add "
                "a metadata.csv with the columns file_name and text"
            )
        return _folder_source(spec, path, path.resolve().name, language, clips)
    if spec.count(":") == 2:
        return _hub_source(spec, streaming=streaming, language=language)
    raise SourceError(f"{spec}: there is no such file or folder; for a data set of the hub write org/name:config:split")


def language_of(spec: str) -> str:
    """The language in the name of a multilingual set's configuration, as in ``...multilingual...:fleurs_de:test``."""
    found = re.search(r"multilingual[^:]*:[^:]*_([a-z]{2}):", spec)
    return found[1] if found else "en"


def _folder_source(spec: str, folder: Path, split: str, language: str, clips: list[Clip]) -> Source:
    if not clips:
        raise SourceError(f"{spec}: has no clips; write one JSON object a line")
    clips = list(_named_apart(clips))
    folder = folder.resolve()
    owner = folder.parent if split == folder.name else folder
    return Source(spec, owner.name or "data", "", split, language, folder, False, lambda: clips)


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
            file_column = _first(FILE_COLUMNS, columns)
            text_column = _first(TEXT_COLUMNS, columns)
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


def _named_apart(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The same clips; a file that comes again is called ``name#2``, ``name#3``, as results go by name."""
    seen: dict[str, int] = {}
    for clip in clips:
        count = seen[clip.audio_filepath] = seen.get(clip.audio_filepath, 0) + 1
        yield clip if count == 1 else replace(clip, audio_filepath=f"{clip.audio_filepath}#{count}")


def _hub_source(spec: str, *, streaming: bool, language: str) -> Source:
    try:
        from datasets import Audio, load_dataset
    except ImportError as error:
        raise SourceError(f"{spec}: needs the datasets library; pip install 'phi4mm[eval]'") from error
    path, config, split = spec.split(":")
    try:
        dataset = load_dataset(path, config or None, split=split, streaming=streaming)
    except Exception as error:  # the library raises many kinds, for names, networks and permissions
        raise SourceError(f"{spec}: cannot be loaded ({_one_line(error)}); check org/name:config:split") from error
    columns = list(dataset.column_names or dataset.features or ())
    text_column = _first(TEXT_COLUMNS, columns)
    if "audio" not in columns or text_column is None:
        raise SourceError(f"{spec}: has the columns {', '.join(columns)}; expected audio and text")
    dataset = dataset.cast_column("audio", Audio(decode=False))

    def clips() -> Iterator[Clip]:
        rows = dataset if streaming else dataset.remove_columns("audio")
        return _named_apart(_hub_clip(row, index, text_column, dataset) for index, row in enumerate(rows))

    name = Path(path).resolve().name if Path(path).is_dir() else path
    return Source(spec, name, config, split, language, None, streaming, clips if streaming else lambda: list(clips()))


def _hub_clip(row: Mapping[str, Any], index: int, text_column: str, dataset: Any) -> Clip:
    identity = _first_value(ID_COLUMNS, row)
    seconds = _first_value(DURATION_COLUMNS, row)
    parent_id = row.get("parent_id")
    return Clip(
        audio_filepath=f"sample_{index}" if identity is None else Path(str(identity)).name,
        text=row[text_column] or "",
        audio=_hub_audio(row["audio"]) if "audio" in row else StoredAudio(dataset, index),
        seconds=None if seconds is None else float(seconds),
        parent_id=None if parent_id is None else str(parent_id),
        chunk_index=row.get("chunk_index"),
    )


def _hub_audio(value: Mapping[str, Any]) -> Path | bytes:
    """An undecoded audio cell: the bytes of a file, or else its path."""
    content = value.get("bytes")
    return Path(value.get("path") or "") if content is None else bytes(content)


def _first(wanted: Iterable[str], columns: Iterable[str]) -> str | None:
    present = set(columns)
    return next((name for name in wanted if name in present), None)


def _first_value(wanted: Iterable[str], row: Mapping[str, Any]) -> Any:
    return next((row[name] for name in wanted if row.get(name) not in (None, "")), None)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

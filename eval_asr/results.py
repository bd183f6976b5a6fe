"""Results on disk: the leaderboard's manifest, one JSON object a line, and beside it the settings of the run.

A row is written with one call, as soon as it is there, and ends in a newline: whatever kills the program, the file
holds whole rows and at most one half row at its end, which is cut off when the run goes on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval_asr.errors import ResultsError
from phi4mm.files import written_whole

LOCK_NAME = ".eval_asr.lock"


@dataclass(frozen=True)
class Row:
    """One clip's result, with the leaderboard's names.

    Attributes:
        audio_filepath: what identifies the clip in its set: its file, with ``#2`` where a file comes a second time.
        duration: of the audio, in seconds; 0 where it could not be read.
        time: seconds of transcription, this clip's share of its batch.
        text: the reference as the corpus gives it.
        pred_text: what was recognised, as it came.
        error: why there is no transcription; ``None`` where there is one.
        parent_id: the recording that this clip is a chunk of, where the set is chunked.
        chunk_index: the place of the chunk in its recording, from 0.
    """

    audio_filepath: str
    duration: float
    time: float
    text: str
    pred_text: str
    error: str | None = None
    parent_id: str | None = None
    chunk_index: int | None = None

    def to_json(self) -> str:
        """One line without its newline; the last three fields only where they are set."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Row:
        """A row from its line; unknown keys are ignored, as the leaderboard's manifests may carry more.

        Raises:
            ValueError: the line is not JSON, or lacks a text or has one of another type.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("is not a JSON object")
        values["pred_text"] = values.get("pred_text") or ""
        for key in ("audio_filepath", "text", "pred_text"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"has no string {key!r}")
        for key in ("duration", "time"):
            if not isinstance(values.get(key), int | float | None):
                raise ValueError(f"{key!r} is not a number")
        parent_id, chunk_index = values.get("parent_id"), values.get("chunk_index")
        if parent_id is not None and not isinstance(chunk_index, int):
            raise ValueError("has a 'parent_id' but no whole number 'chunk_index'")
        return cls(
            audio_filepath=values["audio_filepath"],
            duration=float(values.get("duration") or 0.0),
            time=float(values.get("time") or 0.0),
            text=values["text"],
            pred_text=values["pred_text"],
            error=values.get("error"),
            parent_id=None if parent_id is None else str(parent_id),
            chunk_index=chunk_index,
        )


@dataclass(frozen=True)
class SetName:
    """Which model ran on which set: a data set's path (repository or folder), its configuration and its split."""

    model: str
    path: str
    name: str
    split: str

    @property
    def dataset(self) -> str:
        """The set alone, for people: ``path name split`` without what is empty."""
        return " ".join(part for part in (self.path, self.name, self.split) if part)

    @property
    def file_name(self) -> str:
        return manifest_name(self.model, self.path, self.name, self.split)


def manifest_name(model: str, path: str, name: str, split: str) -> str:
    """The leaderboard's file name of a set's results; slashes become dashes, as there."""
    model, path, name, split = (part.replace("/", "-") for part in (model, path, name, split))
    return f"MODEL_{model}_DATASET_{path}_{name}_{split}.jsonl"


def parse_manifest_name(name: str) -> SetName:
    """The parts of a results file's name.

    The name does not show where one part ends and the next begins when parts hold underscores. A set without a
    configuration leaves two underscores in a row, between its path and its split; otherwise the path and the split
    are taken to have none. ``set_name`` knows better where the settings are at hand.

    Raises:
        ResultsError: the name is not of this form.
    """
    stem = Path(name).name.removesuffix(".jsonl")
    model, found, dataset = stem.removeprefix("MODEL_").partition("_DATASET_")
    if "__" in dataset:
        path, _, split = dataset.partition("__")
        config = ""
    else:
        rest, _, split = dataset.rpartition("_")
        path, _, config = rest.partition("_")
    if not (stem.startswith("MODEL_") and found and model and path and split):
        raise ResultsError(f"{name}: is not named MODEL_..._DATASET_..._..._....jsonl; give it the leaderboard's name")
    return SetName(model, path, config, split)


def set_name(manifest: Path) -> SetName:
    """Model and set of a manifest: from the settings beside it, or else from its name."""
    settings = read_settings(manifest)
    return parse_manifest_name(manifest.name) if settings is None else settings.name


@dataclass(frozen=True)
class Timing:
    """Where the time of a run over one corpus went.

    Attributes:
        wall_seconds: from listing the clips to the last row written.
        loading_seconds: of libraries and model, with the warm-up; ``None`` where workers elsewhere did it.
        recognising_seconds: in the recogniser, from samples to text; ``None`` likewise.
    """

    wall_seconds: float
    loading_seconds: float | None
    recognising_seconds: float | None

    @property
    def overhead(self) -> float | None:
        """The harness's own share of the time after loading: neither loaded nor recognised; ``None`` if not known.

        Reading audio counts where the recogniser had to wait for it; a thread reads a batch ahead.
        """
        if self.loading_seconds is None or self.recognising_seconds is None or not self.recognising_seconds:
            return None
        running = self.wall_seconds - self.loading_seconds
        return (running - self.recognising_seconds) / running

    def sentence(self) -> str:
        wall = f"{self.wall_seconds:.1f} s"
        if self.overhead is None:
            return wall
        return (
            f"{wall}: loading and warm-up {self.loading_seconds:.2f}, recognising {self.recognising_seconds:.2f}, "
            f"overhead {100 * self.overhead:.1f} % of the time after loading"
        )


@dataclass(frozen=True)
class Session:
    """When, with what and where a run wrote rows; ``timing`` once it has come to its end."""

    started: str
    versions: dict[str, str]
    machine: dict[str, Any]
    commit: str | None
    timing: Timing | None = None

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Session:
        timing = values.get("timing")
        return cls(**{**values, "timing": None if timing is None else Timing(**timing)})


@dataclass(frozen=True)
class RunSettings:
    """What made a manifest; it stands beside it as ``<manifest>.run.json``.

    Attributes:
        name: model and set.
        source: the corpus, as the user named it.
        language: of the references.
        audio_root: the folder that the rows' ``audio_filepath`` are relative to; ``None`` for a hub's data set.
        options: everything that the rows depend on: a run goes on only with the same.
        sessions: the runs that wrote rows, the first one first.
    """

    name: SetName
    source: str
    language: str
    audio_root: str | None
    options: dict[str, Any]
    sessions: tuple[Session, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunSettings:
        values = json.loads(text)
        return cls(
            name=SetName(**values["name"]),
            source=values["source"],
            language=values["language"],
            audio_root=values["audio_root"],
            options=values["options"],
            sessions=tuple(Session.from_values(session) for session in values["sessions"]),
        )


def settings_path(manifest: Path) -> Path:
    return manifest.with_suffix(".run.json")


def read_settings(manifest: Path) -> RunSettings | None:
    """The settings beside a manifest, or ``None`` where there are none, as beside the leaderboard's own.

    Raises:
        ResultsError: the file is there but damaged.
    """
    path = settings_path(manifest)
    try:
        return RunSettings.from_json(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: is damaged ({error}); remove it, and its manifest to start again") from error


def write_settings(manifest: Path, settings: RunSettings) -> None:
    """Write them, whole or not at all.

    Raises:
        ResultsError: the disk is full, or the folder cannot be written.
    """
    path = settings_path(manifest)
    try:
        with written_whole(path) as partial:
            partial.write_text(settings.to_json(), "utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror}); make room, or name another --out") from error


def manifests(folder: Path) -> list[Path]:
    """The manifests in a folder and below, or the one that is named.

    Raises:
        ResultsError: there are none.
    """
    found = [folder] if folder.is_file() else sorted(folder.rglob("MODEL_*_DATASET_*.jsonl"))
    if not found:
        raise ResultsError(f"{folder}: has no results (MODEL_..._DATASET_....jsonl); name a folder that a run wrote")
    return found


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a manifest; a half-written last line, as a running or killed run leaves it, is not one.

    Raises:
        ResultsError: the file cannot be read, or a line is wrong.
    """
    return [row for row, _ in _rows_with_ends(path, closed=False)]


def _rows_with_ends(path: Path, *, closed: bool) -> Iterator[tuple[Row, int]]:
    """Rows, each with the offset in bytes of the end of its line; ``closed`` ones end in a newline."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); name a file of results") from error
    end = 0
    for number, line in enumerate(io.BytesIO(content), start=1):
        end += len(line)
        whole = line.endswith(b"\n")
        if not line.strip() or (closed and not whole):
            continue
        try:
            yield Row.from_json(line.decode("utf-8")), end
        except ValueError as error:
            if not whole:
                return
            raise ResultsError(f"{path}: line {number} {_reason(error)}; mend or remove the line") from error


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "is not JSON"
    return str(error)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder of results for one run; it is created where there is none. The lock ends with the process.

    Raises:
        ResultsError: another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ResultsError(f"{folder}: another run is writing here; wait for it, or name another --out") from error
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be written ({error.strerror}); name another --out") from error
    try:
        yield
    finally:
        lock.release()


class RowWriter:
    """A manifest that is open for more rows. Opening it cuts off a half-written last line.

    Attributes:
        rows: what the file held when it was opened.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        rows_with_ends = list(_rows_with_ends(manifest, closed=True)) if manifest.exists() else []
        self.rows = [row for row, _ in rows_with_ends]
        self._count = len(self.rows)
        self._end = rows_with_ends[-1][1] if rows_with_ends else 0
        try:
            self._file = os.open(manifest, os.O_WRONLY | os.O_CREAT, 0o666)
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
        except OSError as error:
            raise ResultsError(f"{manifest}: cannot be written ({error.strerror}); name another --out") from error

    def append(self, row: Row) -> None:
        """Write a row; when this returns, the operating system has it.

        Raises:
            ResultsError: the disk is full or the file cannot be written; the rows before this one are whole.
        """
        line = (row.to_json() + "\n").encode("utf-8")
        written = 0
        try:
            while written < len(line):  # a disk that is nearly full takes a part
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise ResultsError(
                f"{self.manifest}: cannot be written ({error.strerror}); its {self._count} rows are kept: make room "
                "and run the same command again"
            ) from error
        self._end += written
        self._count += 1

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

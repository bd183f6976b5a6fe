"""Results on disk: the leaderboard's manifest, one JSON object a line.

A row is written with one call, as soon as it is there, and ends in a newline: whatever kills the program, the file
holds whole rows and at most one half row at its end, which is cut off when the run goes on.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from eval_asr.errors import ResultsError, short
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
        try:
            values = json.loads(line)
        except RecursionError as error:
            raise ValueError("is JSON that is nested too deep") from error
        if not isinstance(values, dict):
            raise ValueError("is not a JSON object")
        values["pred_text"] = values.get("pred_text") or ""
        for key in ("audio_filepath", "text", "pred_text"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"has no string {key!r}")
            if not is_text(values[key]):
                raise ValueError(f"has half a surrogate pair (\\ud8..) in {key!r}, which is no character")
        for key in ("duration", "time"):
            if not is_seconds(values.get(key) or 0):
                raise ValueError(f"{key!r} is not a number of seconds")
        parent_id, chunk_index = values.get("parent_id"), values.get("chunk_index")
        if parent_id is not None and not isinstance(chunk_index, int):
            raise ValueError("has a 'parent_id' but no whole number 'chunk_index'")
        return cls(
            audio_filepath=values["audio_filepath"],
            duration=float(values.get("duration") or 0.0),
            time=float(values.get("time") or 0.0),
            text=values["text"],
            pred_text=values["pred_text"],
            error=None if values.get("error") is None else str(values["error"]),
            parent_id=None if parent_id is None else str(parent_id),
            chunk_index=chunk_index,
        )


def is_text(text: str) -> bool:
    """Whether a string is text that can be written: half a surrogate pair cannot."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def is_seconds(value: object) -> bool:
    """Whether a value of JSON is a time: a number from 0 to thirty years."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


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

    A row with an error does not count where the clip has a later one, of when it was tried again.

    Raises:
        ResultsError: the file cannot be read, or a line is wrong.
    """
    return _last_tries([row for row, _ in _rows_with_ends(path, closed=False)])


def _last_tries(rows: list[Row]) -> list[Row]:
    last = {row.audio_filepath: index for index, row in enumerate(rows)}
    return [row for index, row in enumerate(rows) if row.error is None or last[row.audio_filepath] == index]


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
            yield Row.from_json(line.decode("utf-8-sig")), end
        except ValueError as error:
            if not whole:
                return
            raise ResultsError(f"{path}: line {number} {_reason(error)}; mend or remove the line") from error


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "is not JSON"
    return short(str(error))


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
        rows: what the file held when it was opened, as ``read_rows`` returns it.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        for left in manifest.parent.glob(f".{glob.escape(manifest.stem)}.*"):  # half-written, by a run that was killed
            left.unlink(missing_ok=True)
        rows_with_ends = list(_rows_with_ends(manifest, closed=True)) if manifest.exists() else []
        self._written = [row for row, _ in rows_with_ends]
        self.rows = _last_tries(self._written)
        self._open(rows_with_ends[-1][1] if rows_with_ends else 0)

    def _open(self, end: int) -> None:
        self._end = end
        try:
            self._file = os.open(self.manifest, os.O_WRONLY | os.O_CREAT, 0o666)
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
        except OSError as error:
            raise ResultsError(f"{self.manifest}: cannot be written ({error.strerror}); name another --out") from error

    def append(self, row: Row) -> None:
        """Write a row; when this returns, the operating system has it.

        Raises:
            ResultsError: the disk is full or the file cannot be written; the rows before this one are whole.
        """
        line = _line(row)
        written = 0
        try:
            while written < len(line):  # a disk that is nearly full takes a part
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise self._full(error) from error
        self._end += written
        self._written.append(row)

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Let the file hold these rows and no others, whole or not at all; nothing is done where it does already.

        Raises:
            ResultsError: it cannot be written; it is what it was.
        """
        if list(rows) == self._written:
            return
        content = b"".join(map(_line, rows))
        try:
            with written_whole(self.manifest) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise self._full(error) from error
        os.close(self._file)
        self._written = list(rows)
        self._open(len(content))

    def _full(self, error: OSError) -> ResultsError:
        return ResultsError(
            f"{self.manifest}: cannot be written ({error.strerror}); its {len(self._written)} rows are kept: make room "
            "and run the same command again"
        )

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(row: Row) -> bytes:
    return (row.to_json() + "\n").encode("utf-8")

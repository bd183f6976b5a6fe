"""What is kept of a run beside its rows: its options, how many clips it is of, and its sessions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval_asr.errors import ResultsError
from eval_asr.names import SetName
from phi4mm.files import written_whole


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
        corpus: the absolute path of the corpus's list or folder; ``None`` for a hub's data set.
        num_clips: that the run is of; ``None`` where it is not known: a streamed set whose end was not reached.
        corpus_clips: of the whole corpus, whatever the limit; ``None`` where it is not known, as where it is streamed.
    """

    name: SetName
    source: str
    language: str
    audio_root: str | None
    options: dict[str, Any]
    sessions: tuple[Session, ...]
    corpus: str | None = None
    num_clips: int | None = None
    corpus_clips: int | None = None

    def part_done(self, num_rows: int) -> str:
        """What the rows are of the corpus, in words, such as "40 of 400 clips, not finished"; empty for all of it."""
        if self.num_clips is None:
            finished = bool(self.sessions) and self.sessions[-1].timing is not None  # by a version that kept no number
            return "" if finished else f"{num_rows:,} clips, not finished"
        if num_rows < self.num_clips:
            return f"{num_rows:,} of {self.num_clips:,} clips, not finished"
        if self.corpus_clips is not None and num_rows < self.corpus_clips:
            return f"{num_rows:,} of {self.corpus_clips:,} clips"
        limited = self.corpus_clips is None and self.options.get("limit") == num_rows
        return f"the {num_rows:,} clips of its limit" if limited else ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"  # in ASCII: a folder's name may not be UTF-8

    @classmethod
    def from_json(cls, text: str) -> RunSettings:
        values = json.loads(text)
        if not isinstance(values["options"], dict):
            raise ValueError(f"options is a {type(values['options']).__name__}")
        for key in ("num_clips", "corpus_clips"):
            if not isinstance(values.get(key), int | None):
                raise ValueError(f"{key} is {values[key]!r}")
        return cls(
            name=SetName(**values["name"]),
            source=values["source"],
            language=values["language"],
            audio_root=values["audio_root"],
            options=values["options"],
            sessions=tuple(Session.from_values(session) for session in values["sessions"]),
            corpus=values.get("corpus"),
            num_clips=values.get("num_clips"),
            corpus_clips=values.get("corpus_clips"),
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(
            f"{path}: is damaged ({str(error)[:200]}); remove it, and its manifest to start again"
        ) from error


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

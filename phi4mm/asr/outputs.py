"""Where the segments of one audio go while they come: into files beside their place, or to standard output."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from phi4mm.cli import write_out
from phi4mm.files import written_whole
from phi4mm.transcription.writers import Writer, one_line, spoken
from phi4mm.types import Segment, Transcript

_LONGEST_NAME = 255  # bytes of a file's name, on every common file system
_PARTIAL = ".partial"


class Output(ABC):
    """Takes an audio's segments in order and then its end."""

    @abstractmethod
    def add(self, segment: Segment) -> None:
        """Take one more segment."""

    @abstractmethod
    def end(self, transcript: Transcript) -> None:
        """Finish: these were all segments.

        Raises:
            OSError: a file cannot be written; it names the file.
        """

    @abstractmethod
    def cut(self, transcript: Transcript, error: str | None) -> str:
        """Finish with what was decoded so far: because of an error of the input, or (``None``) an interruption.

        Returns:
            Where that is: "in FILE", "printed"; "" if there is nothing.

        Raises:
            OSError: a file cannot be written; it names the file.
        """


class FileOutput(Output):
    """A file that is there whole or not at all. Its segments grow in FILE.partial, which stays where the run ends
    before the audio, however it ends; a later run replaces it."""

    def __init__(self, writer: Writer, path: Path) -> None:
        self._writer = writer
        self._path = path
        self._partial = partial_path(path)
        self._number = 0  # of rows that are written
        self._failure: OSError | None = None

    def add(self, segment: Segment) -> None:
        if self._failure is not None:
            return
        rows = self._writer.rows(segment, self._number)
        try:
            if not self._number:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._partial.write_bytes((self._writer.head + self._writer.tail).encode("utf-8"))
            with open(self._partial, "r+b") as file:
                file.seek(-len(self._writer.tail), os.SEEK_END)  # the tail is ASCII
                file.write(("".join(rows) + self._writer.tail).encode("utf-8"))
        except OSError as error:  # which counts where the audio is not read to its end
            self._failure = OSError(error.errno, error.strerror, os.fspath(self._partial))
        self._number += len(rows)

    def end(self, transcript: Transcript) -> None:
        self._writer.write(transcript, self._path)
        self._partial.unlink(missing_ok=True)

    def cut(self, transcript: Transcript, error: str | None) -> str:
        if self._failure is not None:
            raise self._failure
        if not self._number:
            return ""
        with written_whole(self._partial) as part:
            part.write_bytes(self._writer.render_partial(transcript).encode("utf-8"))
        return f"in {self._partial}"


class LineOutput(Output):
    """One line on standard output, which grows with each segment.

    Args:
        prefix: of the line.
        always: whether an audio that cannot be read has a line too, to keep its place among others.
    """

    def __init__(self, prefix: str, *, always: bool) -> None:
        self._before = prefix
        self._always = always
        self._begun = False

    def add(self, segment: Segment) -> None:
        self.part(one_line(spoken(segment)))
        self._before = " "

    def part(self, text: str) -> None:
        """Take a part of the text, which is one with the part before."""
        write_out(self._before + text)
        self._before, self._begun = "", True

    def end(self, transcript: Transcript) -> None:
        write_out("\n" if self._begun else f"{self._before}\n")

    def cut(self, transcript: Transcript, error: str | None) -> str:
        if self._begun or (self._always and error is not None):
            self.end(transcript)
        return "printed" if self._begun else ""


class FormatOutput(Output):
    """A format on standard output, segment by segment; JSON, which has the whole text first, at the end.

    Args:
        writer: of the format.
        prefix: of each row.
    """

    def __init__(self, writer: Writer, prefix: str) -> None:
        self._writer = writer
        self._prefix = prefix
        self._number = 0

    def add(self, segment: Segment) -> None:
        if not self._writer.tail:
            rows = self._writer.rows(segment, self._number)
            head = "" if self._number else self._writer.head
            self._number += len(rows)
            write_out(head + "".join(self._prefix + row for row in rows))

    def end(self, transcript: Transcript) -> None:
        if not self._number:
            write_out(self._writer.render(transcript))

    def cut(self, transcript: Transcript, error: str | None) -> str:
        if self._writer.tail and transcript.segments:
            write_out(self._writer.render_partial(transcript))
        return "printed" if transcript.segments else ""


class JsonLineOutput(Output):
    """One JSON object on a line of standard output.

    Args:
        named: what comes before the fields of the transcript.
    """

    def __init__(self, named: dict[str, str]) -> None:
        self._named = named

    def add(self, segment: Segment) -> None:
        pass

    def end(self, transcript: Transcript) -> None:
        self._write({**self._named, **transcript.to_dict()})

    def cut(self, transcript: Transcript, error: str | None) -> str:
        if error is None and not transcript.segments:
            return ""
        mark = {"partial": True} if error is None else {"error": error}
        self._write({**self._named, **transcript.to_dict(), **mark})
        return "printed"

    @staticmethod
    def _write(values: dict[str, object]) -> None:
        # An escape that stands for a character which standard output cannot encode would not be JSON's.
        ascii_only = "utf" not in (sys.stdout.encoding or "utf").lower()
        write_out(json.dumps(values, ensure_ascii=ascii_only) + "\n")


def partial_path(path: Path) -> Path:
    """Where the part of a file is that is written so far."""
    name = path.name + _PARTIAL
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f"{os.fsdecode(os.fsencode(path.name)[:200])}.{digest}{path.suffix}{_PARTIAL}"
    return path.with_name(name)

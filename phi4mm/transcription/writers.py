"""A transcript in each output format: one class per format, files written whole or not at all."""

from __future__ import annotations

import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from phi4mm.files import written_whole
from phi4mm.types import Segment, Transcript


@dataclass(frozen=True)
class Lines:
    """How subtitles are laid out: the most characters in a line (0: any number) and the most lines on screen."""

    width: int = 42
    count: int = 2


class Writer(ABC):
    """Turns a transcript into the text of one file, whole or as its segments come.

    A text that grows is ``head``, the rows of each segment and ``tail``, which the rows of the next one replace.
    """

    extension: ClassVar[str]
    head: ClassVar[str] = ""
    tail: ClassVar[str] = ""

    @abstractmethod
    def rows(self, segment: Segment, number: int) -> list[str]:
        """A segment's rows, ``number`` of which stand before them."""

    def render(self, transcript: Transcript) -> str:
        """The whole text, which ends with a newline unless it is empty."""
        rows: list[str] = []
        for segment in transcript.segments:
            rows += self.rows(segment, len(rows))
        return self.head + "".join(rows)

    def render_partial(self, transcript: Transcript) -> str:
        """The text of the part of an audio that was transcribed, marked as such where the format has a place for it."""
        return self.render(transcript)

    def write(self, transcript: Transcript, path: Path) -> None:
        """Write a file whole or not at all; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_bytes(self.render(transcript).encode("utf-8"))


class TextWriter(Writer):
    """One segment a line."""

    extension = "txt"

    def rows(self, segment: Segment, number: int) -> list[str]:
        return [f"{one_line(spoken(segment))}\n"]


class TsvWriter(Writer):
    """``start``, ``end`` in milliseconds and ``text``, tab-separated, under a header."""

    extension = "tsv"
    head = "start\tend\ttext\n"

    def rows(self, segment: Segment, number: int) -> list[str]:
        return [f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{one_line(spoken(segment))}\n"]


class JsonWriter(Writer):
    """``Transcript.to_dict``; ``Transcript.from_dict`` is its inverse. Where it is partial, ``partial`` is true."""

    extension = "json"
    head = '{\n  "segments": ['
    tail = '\n  ],\n  "partial": true\n}\n'

    def rows(self, segment: Segment, number: int) -> list[str]:
        return [("," if number else "") + "\n    " + json.dumps(asdict(segment), ensure_ascii=False)]

    def render(self, transcript: Transcript) -> str:
        return json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2) + "\n"

    def render_partial(self, transcript: Transcript) -> str:
        return json.dumps({**transcript.to_dict(), "partial": True}, ensure_ascii=False, indent=2) + "\n"


class SubtitleWriter(Writer):
    """Segments divided into cues that fit on the screen.

    A cue begins and ends with its words where those are timed; otherwise its part of its segment's time is its part of
    the segment's characters. Both are estimates.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def cues(self, segment: Segment) -> Iterator[Segment]:
        """Cues in order, at least a millisecond long; their text has line breaks. Each begins with its speaker."""
        rows = _wrap(one_line(segment.text), self._lines.width)
        texts = ["\n".join(rows[at : at + self._lines.count]) for at in range(0, len(rows), self._lines.count)]
        for text, (start, end) in zip(texts, self._times(segment, texts), strict=True):
            yield Segment(start, max(end, start + 0.001), spoken(replace(segment, text=text)))

    @staticmethod
    def _times(segment: Segment, texts: list[str]) -> Iterator[tuple[float, float]]:
        """Start and end of each part of a segment's text."""
        counts = [len(text.split()) for text in texts]
        if segment.words and sum(counts) == len(segment.words):
            for count, last in zip(counts, itertools.accumulate(counts), strict=True):
                yield segment.words[last - count].start, segment.words[last - 1].end
            return
        total = sum(map(len, texts))
        for text, done in zip(texts, itertools.accumulate(map(len, texts)), strict=True):
            start, end = (segment.start + (segment.end - segment.start) * at / total for at in (done - len(text), done))
            yield start, end


class SrtWriter(SubtitleWriter):
    """SubRip."""

    extension = "srt"

    def rows(self, segment: Segment, number: int) -> list[str]:
        return [
            ("\n" if at > 1 else "")
            + f"{at}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text.replace('-->', '->')}\n"
            for at, cue in enumerate(self.cues(segment), number + 1)
        ]


class VttWriter(SubtitleWriter):
    """WebVTT (www.w3.org/TR/webvtt1)."""

    extension = "vtt"
    head = "WEBVTT\n"

    def rows(self, segment: Segment, number: int) -> list[str]:
        return [
            f"\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_escaped(cue.text)}\n" for cue in self.cues(segment)
        ]


FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def writers(formats: Sequence[str], lines: Lines) -> list[Writer]:
    """The writer of each format, in the order of ``FORMATS``."""
    every: list[Writer] = [TextWriter(), SrtWriter(lines), VttWriter(lines), TsvWriter(), JsonWriter()]
    return [writer for writer in every if writer.extension in formats]


def spoken(segment: Segment) -> str:
    """A segment's text, after its speaker where that was looked for."""
    return segment.text if segment.speaker is None else f"{segment.speaker}: {segment.text}"


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def _wrap(text: str, width: int) -> list[str]:
    """Lines of up to ``width`` characters, broken between words; a longer word, or a text without spaces, within."""
    if not width:
        return [text]
    lines = [""]
    for word in re.split(r"(?<=\s)", text):
        if len(lines[-1]) + len(word.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(word.rstrip()) > width:
            lines[-1], word = word[:width], word[width:]
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines if line.strip()]


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

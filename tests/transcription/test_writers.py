"""The output formats, read back by pysubs2 and json."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pysubs2
import pytest

from phi4mm.files import written_whole
from phi4mm.transcription.writers import (
    FORMATS,
    JsonWriter,
    Lines,
    SrtWriter,
    SubtitleWriter,
    TextWriter,
    TsvWriter,
    VttWriter,
    writers,
)
from phi4mm.types import Segment, Transcript, Word

LONG = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness."
TRANSCRIPT = Transcript(
    f"one two Fish & <chips> --> größer 三 {LONG}",
    (
        Segment(0.0, 1.25, "one two", -0.1, 0.7, 0.02, 0.0),
        Segment(2.5, 3.75, "Fish & <chips> --> größer 三", -0.5, 0.8, 0.1, 0.2),
        Segment(3600.5, 3610.5, LONG),
    ),
    3700.0,
)
EMPTY = Transcript("", (), 1.0)


def _cues(writer: SubtitleWriter, transcript: Transcript) -> list[Segment]:
    return [cue for segment in transcript.segments for cue in writer.cues(segment)]


def test_txt() -> None:
    assert TextWriter().render(TRANSCRIPT).splitlines() == [segment.text for segment in TRANSCRIPT.segments]
    assert TextWriter().render(EMPTY) == ""


def test_tsv() -> None:
    lines = TsvWriter().render(TRANSCRIPT).splitlines()
    assert lines[:2] == ["start\tend\ttext", "0\t1250\tone two"]
    assert lines[3] == f"3600500\t3610500\t{LONG}"


def test_json_round_trips() -> None:
    assert Transcript.from_dict(json.loads(JsonWriter().render(TRANSCRIPT))) == TRANSCRIPT


@pytest.mark.parametrize("writer", [SrtWriter(Lines()), VttWriter(Lines())])
def test_subtitles_parse(writer: SrtWriter | VttWriter) -> None:
    subtitles = pysubs2.SSAFile.from_string(writer.render(TRANSCRIPT), format_=writer.extension)
    assert [(event.start, event.end) for event in subtitles[:2]] == [(0, 1250), (2500, 3750)]
    assert subtitles[0].plaintext == "one two"
    assert subtitles[2].start == 3600500
    assert subtitles[-1].end == 3610500
    assert len(subtitles) == 4
    joined = " ".join(event.plaintext.replace("\n", " ") for event in subtitles[2:])
    assert joined == LONG
    for event, following in pairwise(subtitles):
        assert event.start < event.end <= following.start
        assert all(len(line) <= 42 for line in event.plaintext.split("\n"))
        assert event.plaintext.count("\n") <= 1


def test_nothing_said_is_a_valid_file() -> None:
    assert SrtWriter(Lines()).render(EMPTY) == ""
    assert VttWriter(Lines()).render(EMPTY) == "WEBVTT\n"


def test_markup_is_escaped() -> None:
    assert "Fish &amp; &lt;chips&gt; --&gt; größer 三" in VttWriter(Lines()).render(TRANSCRIPT)
    assert "Fish & <chips> -> größer 三" in SrtWriter(Lines()).render(TRANSCRIPT)


@pytest.mark.parametrize(("width", "count"), [(0, 1), (5, 1), (20, 3)])
def test_layout(width: int, count: int) -> None:
    cues = _cues(SrtWriter(Lines(width, count)), TRANSCRIPT)
    assert all(cue.text.count("\n") < count for cue in cues)
    assert all(len(line) <= (width or 999) for cue in cues for line in cue.text.split("\n"))
    spoken = "".join(segment.text for segment in TRANSCRIPT.segments)
    assert "".join("".join(cue.text for cue in cues).split()) == "".join(spoken.split())


def test_cues_have_the_times_of_their_words() -> None:
    words = tuple(Word(text, start, start + 0.3) for text, start in (("one", 1.0), ("two", 1.5), ("three", 4.0)))
    timed = Transcript.of([Segment(0.9, 4.4, "one two three", words=words)], 5.0)
    cues = [(cue.start, cue.end, cue.text) for cue in _cues(SrtWriter(Lines(8, 1)), timed)]
    assert cues == [(1.0, 1.8, "one two"), (4.0, 4.3, "three")]


def test_all_is_every_format() -> None:
    assert tuple(writer.extension for writer in writers(FORMATS, Lines())) == FORMATS
    assert [writer.extension for writer in writers(["vtt"], Lines())] == ["vtt"]


class Failing(TextWriter):
    def render(self, transcript: Transcript) -> str:
        raise KeyboardInterrupt


def test_an_interrupted_file_keeps_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.txt"
    TextWriter().write(TRANSCRIPT, path)
    before = path.read_text("utf-8")
    with pytest.raises(KeyboardInterrupt):
        Failing().write(EMPTY, path)
    assert path.read_text("utf-8") == before
    assert list(path.parent.iterdir()) == [path]


def _write_for_ever(path: Path, transcript: Transcript) -> None:
    while True:
        JsonWriter().write(transcript, path)


def test_a_killed_program_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    transcript = Transcript("word " * 100_000, (Segment(0, 1, "word " * 100_000),), 1.0)
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, transcript))
    writer.start()
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.05)
    assert writer.pid is not None
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert Transcript.from_dict(json.loads(path.read_text("utf-8"))) == transcript


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*out.txt'"), written_whole(tmp_path / "out.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    gone = tmp_path / "gone" / "out.txt"
    with pytest.raises(OSError, match=r"No such file or directory: '.*gone/out.txt'"), written_whole(gone) as part:
        part.write_text("x")

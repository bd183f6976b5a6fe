"""Pipes: decoded as they come, copied where they must be, and found out where they are cut."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phi4mm import AudioError
from phi4mm.inputs import pipe as pipes
from phi4mm.inputs.audio import load_audio
from phi4mm.inputs.pipe import Pipe, in_thread


def piped(content: bytes) -> io.BufferedReader:
    """The reading end of a pipe that gives so much and ends."""
    end, start = os.pipe()

    def write() -> None:
        with open(start, "wb") as file:
            file.write(content)

    threading.Thread(target=write, daemon=True).start()
    return open(end, "rb")


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_a_pipe_gives_what_its_file_gives(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.random.default_rng(1).uniform(-0.3, 0.3, 50_000).astype(np.float32), 16000)
    whole = load_audio(path).samples
    with piped(path.read_bytes()) as file:
        samples = load_audio(file).samples
    assert np.array_equal(samples[: len(whole)], whole)
    assert len(samples) - len(whole) < 1600  # FFmpeg takes away an mp3's padding at its end where it can seek alone
    with piped(path.read_bytes()[:-9000]) as file, pytest.raises(AudioError, match="is truncated"):
        load_audio(file)


def test_a_copy_ends_before_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_CHECKED_EVERY", 1)
    monkeypatch.setattr(pipes, "_LEFT_FREE", 1 << 62)
    with piped(bytes(100_000)) as file, pytest.raises(AudioError, match=r"talk: does not end after .* TMPDIR"):
        Pipe(file, "talk").copy_to(io.BytesIO())


def test_in_thread() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    items = in_thread(endless())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]
    assert len(made) < 10

    def failing() -> Iterator[int]:
        yield 1
        raise AudioError("x: is truncated")

    with pytest.raises(AudioError, match="truncated"):
        list(in_thread(failing()))
    assert list(in_thread(iter(()))) == []

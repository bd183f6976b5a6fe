"""The sound of video files, and of audio that libsndfile cannot read, through the ffmpeg program."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phi4mm.errors import AudioError

# Names that libsndfile would refuse.
SUFFIXES = {
    *(".3gp", ".aac", ".ac3", ".amr", ".asf", ".avi", ".flv", ".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wma", ".wmv"),
}
BLOCK_BYTES = 1 << 19
_AU_HEADER = struct.Struct(">4s5I")  # magic, where samples begin, their size, encoding, sampling rate, channels
_FULL_SCALE = 32768.0


def needs_ffmpeg(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a container that ffmpeg has to open, by its name."""
    return Path(path).suffix.lower() in SUFFIXES


def ffmpeg_blocks(path: str | os.PathLike[str], name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The first sound track of a file, block by block: float32 samples [n, channels] and the rate in Hz.

    Raises:
        AudioError: ffmpeg is not installed, or finds no sound that it can read.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{name}: such files are read with ffmpeg, which is not installed; install it or convert to wav"
        )
    if not Path(path).is_file():
        raise AudioError(f"{name}: there is no such file; check the path")
    # Only this very file is opened, whatever a playlist in it may name. The AU format says rate and channels in a pipe.
    command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe", "-i", f"file:{os.fspath(path)}"]
    command += ["-map", "0:a:0", "-c:a", "pcm_s16be", "-f", "au", "pipe:1"]
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told) as process,
    ):
        assert process.stdout is not None
        try:
            header = process.stdout.read(_AU_HEADER.size)
            if len(header) == _AU_HEADER.size:
                _, begin, _, _, rate, channels = _AU_HEADER.unpack(header)
                process.stdout.read(begin - len(header))
                size = 2 * channels
                while block := process.stdout.read(BLOCK_BYTES // size * size):
                    samples = np.frombuffer(block[: len(block) // size * size], ">i2").reshape(-1, channels)
                    yield samples.astype(np.float32) / _FULL_SCALE, rate
            if process.wait() != 0 or len(header) < _AU_HEADER.size:
                told.seek(0)
                lines = told.read().decode("utf-8", "replace").split("\n")
                reason = next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
                raise AudioError(
                    f"{name}: ffmpeg reads no sound from it ({reason}); check that it is whole and has a sound track"
                )
        finally:
            process.kill()  # where the caller stopped early; one that has ended is left alone

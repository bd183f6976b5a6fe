"""What FFmpeg reads as noise, or not at all: big-endian WAV, little-endian AIFF and AU, G.721. By libsndfile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from phi4mm.errors import AudioError
from phi4mm.inputs.file_layout import truncated

if TYPE_CHECKING:
    import soundfile

SNDFILE_HEAD = 64  # bytes
BLOCK_FRAMES = 1 << 16
_AU_CODES = {23, 25, 26}  # G.721, and G.723 of 24 and 40 kbit/s
_WAV_G721 = b"\x40\0"


def is_misread(head: bytes) -> bool:
    """Whether a file is of one of these kinds, by its first ``SNDFILE_HEAD`` bytes or more."""
    head = head[:SNDFILE_HEAD]
    if head[:4] == b"RIFX" or head[:4] == b"dns.":  # AU in the other order of bytes
        return True
    if head[:4] == b".snd":
        return int.from_bytes(head[12:16], "big") in _AU_CODES
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        return head[20:22] == _WAV_G721
    return head[:4] == b"FORM" and (b"42n1" in head or b"23ni" in head)  # little-endian, of 24 and 32 bits


def sndfile_blocks(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The samples of a file.

    Yields:
        float32 samples [n, channels] and the sampling rate in Hz.

    Raises:
        AudioError: the file is damaged or truncated.
    """
    with _opened(file, name) as sound:
        found = 0
        while len(block := sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            found += len(block)
            yield block, sound.samplerate
        if found < sound.frames:
            raise truncated(name, f"{sound.frames} samples", f"{found}")


def sndfile_seconds(file: BinaryIO, name: str) -> float:
    """The length of a file."""
    with _opened(file, name) as sound:
        return sound.frames / sound.samplerate


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[soundfile.SoundFile]:
    """A file by its descriptor: libsndfile's callbacks into Python would lose Ctrl-C."""
    import soundfile

    with tempfile.TemporaryFile() as copy:
        try:
            descriptor = file.fileno()
        except OSError:  # it is in memory
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            descriptor = copy.fileno()
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            with soundfile.SoundFile(os.dup(descriptor), closefd=True) as sound:
                yield sound
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{name}: is not audio that can be read ({error.error_string}), expected a whole file; convert it "
                "(ffmpeg) or download it again"
            ) from error

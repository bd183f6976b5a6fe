"""Audio files of any common format, decoded block by block: by libsndfile (soundfile), video and the like by ffmpeg."""

from __future__ import annotations

import io
import numbers
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile
import torch

from phi4mm.errors import AudioError
from phi4mm.inputs.ffmpeg import ffmpeg_blocks, needs_ffmpeg
from phi4mm.inputs.source import is_url

FULL_SCALE = 32768.0  # of 16-bit sample values
# Bounds of what is accepted, and of the memory that the work takes.
MAX_CHANNELS = 64
MAX_RATE = 4_000_000  # Hz
MAX_SECONDS = 24 * 60 * 60
BLOCK_SAMPLES = 1 << 18  # samples decoded at once, over all channels
STREAMED_SIZE = 0x7FFF0000  # a size from here up is what a program writing into a pipe puts for "unknown"; so is 0
UNKNOWN_FRAMES = 1 << 62  # the same in libsndfile
MP3_TAIL = 512  # bytes of tags that may follow the last frame of an mp3 (ID3v1: 128, extended 355)

# How a container counts, and where it keeps its samples.
_CHUNKS: dict[bytes, tuple[Literal["little", "big"], bytes]] = {
    b"RIFF": ("little", b"data"),
    b"RIFX": ("big", b"data"),
    b"FORM": ("big", b"SSND"),
}

Samples = tuple[np.ndarray | torch.Tensor | list[Any], int]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | Samples | Iterator[Samples]


def decoded_blocks(source: AudioSource, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The samples of a source, block by block, so that memory does not grow with its length.

    Yields:
        Float samples [n, channels] and the sampling rate in Hz; arrays handed in come as one block.

    Raises:
        AudioError: there is no such file, it is not audio, it is damaged or truncated (which may show only at its
            end), it is too long, or the samples are not floats.
    """
    if isinstance(source, tuple):
        yield _from_samples(source, name)
    elif isinstance(source, Iterator) and not hasattr(source, "read"):
        for part in source:
            yield _from_samples(part, name)
    elif isinstance(source, str | os.PathLike) and needs_ffmpeg(source) and not is_url(source):
        for block, rate in ffmpeg_blocks(source, name):
            _check_format(0, block.shape[1], rate, name)
            yield block, rate
    else:
        yield from _decode(source, name)


def _decode(source: Any, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Reads a file block by block."""
    with _opened(source, name) as stream:
        size = stream.seek(0, io.SEEK_END)
        if not size:
            raise AudioError(f"{name}: is empty (0 bytes), expected an audio file; write or download it again")
        stream.seek(0)
        start = stream.read(16)
        stream, lead = _with_open_end(_with_true_size(stream, size, name))
        try:
            file = _Sequential(stream)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{name}: is not audio that can be read ({_reason(error)}; it starts with {start!r}), expected wav, "
                "flac, ogg, opus or mp3; convert it (ffmpeg) or download it again"
            ) from error
        with file:
            _check_format(0, file.channels, file.samplerate, name)
            try:
                for block in _read(file, stream, lead, name):
                    yield block, file.samplerate
            except soundfile.LibsndfileError as error:
                raise AudioError(
                    f"{name}: is damaged or truncated ({_reason(error)}), expected a whole file; copy or download it "
                    "again"
                ) from error


@contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """A seekable binary file; a path's is closed at the end, a caller's file is only read."""
    if is_url(source):
        raise AudioError(f"{name}: is a URL, expected a file; download it first and pass its path")
    with ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open(source, "rb"))
                content = source if source.seekable() else source.read()
            else:
                content = source.read() if hasattr(source, "read") else source
        except FileNotFoundError as error:
            raise AudioError(f"{name}: there is no such file ({error.filename}); check the path") from error
        except IsADirectoryError as error:
            raise AudioError(f"{name}: is a folder, expected an audio file; pass a file in it") from error
        except (OSError, ValueError) as error:
            raise AudioError(f"{name}: cannot be read ({error}), expected a readable audio file") from error
        if isinstance(content, (bytes, bytearray, memoryview)):
            content = io.BytesIO(content)
        elif content is not source or not hasattr(content, "seek"):
            raise AudioError(
                f"{name}: gives {type(content).__name__}, expected a path, bytes, a file open in binary mode or "
                "(samples, sampling_rate)"
            )
        yield content


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from start to end. soundfile would seek after every read, which a streamed flac, whose
    header gives no length, does not allow."""

    def seekable(self) -> bool:
        return False


def _read(file: soundfile.SoundFile, stream: BinaryIO, lead: int, name: str) -> Iterator[np.ndarray]:
    """All samples after the first ``lead``, in blocks [n, channels]."""
    promised, total = file.frames, 0
    while len(block := file.read(BLOCK_SAMPLES // file.channels, dtype="float32", always_2d=True)):
        yield block[max(lead - total, 0) :]
        total += len(block)
        _check_format(total, file.channels, file.samplerate, name)
    rest = stream.read() if file.format == "MP3" else b""
    if len(rest) > MP3_TAIL and b"APETAGEX" not in rest:
        raise AudioError(
            f"{name}: goes on for {len(rest)} bytes beyond the end that its header gives, as joined mp3 files do; "
            "convert it (ffmpeg) to wav or flac"
        )
    if total < promised < UNKNOWN_FRAMES and not lead:
        raise _truncated(name, f"{promised} samples", str(total))


def _from_samples(source: tuple[Any, ...], name: str) -> tuple[np.ndarray, int]:
    """Checks ``(samples, sampling_rate)``."""
    if len(source) != 2:
        raise AudioError(f"{name}: a tuple of {len(source)} values, expected (samples, sampling_rate)")
    samples, rate = source
    if isinstance(rate, bool) or not isinstance(rate, numbers.Integral):
        raise AudioError(f"{name}: sampling rate {rate!r}, expected a whole number of Hz; pass (samples, 16000)")
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    try:
        array = np.asarray(samples)
    except ValueError as error:
        raise AudioError(f"{name}: samples are not an array ({error}); expected shape [n] or [n, channels]") from error
    if array.size and array.dtype.kind in "iu":
        raise AudioError(
            f"{name}: samples are {array.dtype}, expected floats in [-1, 1]; divide 16-bit values by {FULL_SCALE:.0f}"
        )
    if array.size and array.dtype.kind != "f":
        raise AudioError(f"{name}: samples are {array.dtype}, expected floats in [-1, 1]; convert them first")
    if array.ndim not in (1, 2):
        raise AudioError(f"{name}: samples of shape {list(array.shape)}, expected [n] or [n, channels]; reshape them")
    _check_format(array.shape[0], array.shape[1] if array.ndim == 2 else 1, int(rate), name)
    return (array if array.ndim == 2 else array[:, None]), int(rate)


def _check_format(frames: int, channels: int, rate: int, name: str) -> None:
    if not 0 < rate <= MAX_RATE:
        raise AudioError(f"{name}: sampling rate {rate} Hz, expected 1 to {MAX_RATE}; give its true rate")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name}: {channels} channels, expected 1 to {MAX_CHANNELS}; samples have shape [n] or [n, channels]"
        )
    if frames > MAX_SECONDS * rate:
        raise AudioError(f"{name}: is longer than {MAX_SECONDS // 3600} hours; cut it into shorter files")


def _with_open_end(stream: BinaryIO) -> tuple[BinaryIO, int]:
    """Sees to it that an mp3 without a length, as a pipe leaves it, is read to its end.

    libsndfile guesses such an mp3's length from its size and its first frame's bit rate, and stops there. A silent
    frame of the lowest bit rate, put first, makes the guess an upper bound.

    Returns:
        The stream at its start, and how many samples that frame adds: 0 where none was needed.
    """
    start = 0
    stream.seek(0)
    while (tag := stream.read(10)).startswith(b"ID3"):  # the tag's size has 7 bits a byte
        start += 10 + sum(value << shift for value, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))
        stream.seek(start)
    first = tag + stream.read(192)
    stream.seek(0)
    is_layer_3 = len(first) > 10 and first[0] == 0xFF and first[1] & 0xE6 == 0xE2
    rate_index = first[2] >> 2 & 3 if is_layer_3 else 3
    if rate_index == 3 or any(header in first for header in (b"Xing", b"Info", b"VBRI")):
        return stream, 0
    mpeg_1, mpeg_2 = first[1] & 0x18 == 0x18, first[1] & 0x18 == 0x10
    rate = (44100, 48000, 32000)[rate_index] // (1 if mpeg_1 else 2 if mpeg_2 else 4)
    samples, bit_rate = (1152, 32000) if mpeg_1 else (576, 8000)
    unprotected, lowest = first[1] | 1, 1 << 4 | first[2] & 0x0C
    silence = bytes((0xFF, unprotected, lowest, first[3])).ljust(samples // 8 * bit_rate // rate, b"\0")
    content = stream.read()
    return io.BytesIO(content[:start] + silence + content[start:]), samples


def _with_true_size(stream: BinaryIO, size: int, name: str) -> BinaryIO:
    """Compares the size that a wav or aiff header gives to its samples with what is there, which libsndfile does not.

    Returns:
        The stream at its start; a copy with a usable size where the header says 0, as a pipe writes it.
    """
    stream.seek(0)
    order, wanted = _CHUNKS.get(stream.read(4), ("little", b""))
    stream.seek(12)
    while wanted and len(head := stream.read(8)) == 8:
        length = int.from_bytes(head[4:], order)
        if head[:4] != wanted:
            stream.seek(length + length % 2, io.SEEK_CUR)
            continue
        start = stream.tell()
        if size - start < length < STREAMED_SIZE:
            raise _truncated(name, f"{length} bytes", str(size - start))
        if length == 0 < size - start:
            stream.seek(0)
            content = bytearray(stream.read())
            content[start - 4 : start] = (size - start).to_bytes(4, order)
            return io.BytesIO(content)
        break
    stream.seek(0)
    return stream


def _truncated(name: str, promised: str, there: str) -> AudioError:
    return AudioError(
        f"{name}: is truncated: its header promises {promised} of audio, {there} are there; copy or download it again"
    )


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(".")

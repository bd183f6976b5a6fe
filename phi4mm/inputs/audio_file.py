"""Audio of any source, block by block: files of every common container and codec, and arrays."""

from __future__ import annotations

import io
import numbers
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch

from phi4mm.errors import AudioError, AudioReadError
from phi4mm.inputs.audio_container import (
    MAX_SECONDS,
    blocks,
    check_form,
    check_track,
    opened_container,
    sound_track,
    too_long,
)
from phi4mm.inputs.audio_sndfile import SNDFILE_HEAD, is_misread, sndfile_blocks, sndfile_seconds
from phi4mm.inputs.file_layout import check_piped_size, check_size, known_sizes, ogg_links
from phi4mm.inputs.pipe import Pipe, in_thread, is_pipe
from phi4mm.inputs.source import is_url

FULL_SCALE = 32768.0  # of 16-bit sample values
COPIED_AT_ONCE = 1 << 16  # bytes
BLOCK_OF_PIPE = 1 << 12  # samples decoded at once: those of a live recording are given soon

Samples = tuple[np.ndarray | torch.Tensor | list[Any], int]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | Samples | Iterator[Samples]


def decoded_blocks(source: AudioSource, name: str, *, track: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """The samples of a source, block by block, so that memory does not grow with its length.

    A file's samples begin where its container's time does: a track that begins late begins with silence, and so does
    what follows a gap.

    Args:
        source: as ``load_audio`` takes it.
        name: what errors call it.
        track: of a file's sound tracks, counted from 0; ``None`` for the one that a player takes.

    Yields:
        Float samples [n, channels] and the sampling rate in Hz, both of which may change on the way; arrays handed in
        come as one block.

    Raises:
        AudioError: there is no such file, it is not audio, it is damaged or truncated (which may show only at its
            end), it is too long, or the samples are not floats.
        AudioReadError: reading the file fails on the way.
    """
    if isinstance(source, tuple):
        yield _from_samples(source, name)
    elif isinstance(source, Iterator) and not hasattr(source, "read"):
        for part in source:
            yield _from_samples(part, name)
    elif is_pipe(source):
        yield from in_thread(_piped_blocks(source, name, track))
    else:
        yield from _file_blocks(source, name, track)


def _file_blocks(source: Any, name: str, track: int | None) -> Iterator[tuple[np.ndarray, int]]:
    seconds = 0.0
    with _opened(source, name) as file:
        check_size(file, name)
        for block, rate in _sound_of(file, name, track):
            seconds += len(block) / rate
            if seconds > MAX_SECONDS:
                raise too_long(name)
            yield block, rate


def _sound_of(file: BinaryIO, name: str, track: int | None) -> Iterator[tuple[np.ndarray, int]]:
    if is_misread(file.read(SNDFILE_HEAD)):
        check_track(track, 1, name)
        for block, rate in sndfile_blocks(file, name):
            check_form(block.shape[1], rate, name)
            yield block, rate
        return
    for link in _links(file):
        with opened_container(link, name) as container:
            yield from blocks(container, sound_track(container, name, track), name)


def _piped_blocks(source: Any, name: str, track: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """The blocks of a pipe: as they come where its format allows that, otherwise from a copy on disk."""
    with ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open(source, "rb", buffering=0))
            _check_binary(source, name)
            pipe = Pipe(source, name)
            if pipe.decodes_as_it_comes() and not is_misread(pipe.start):
                container = stack.enter_context(opened_container(pipe, name))
                yield from blocks(container, sound_track(container, name, track), name, BLOCK_OF_PIPE)
                check_piped_size(pipe.start, pipe.count, name)
                return
            copy = stack.enter_context(tempfile.TemporaryFile())
            pipe.copy_to(copy)
        except OSError as error:
            raise _unreadable(name, error) from error
        yield from _file_blocks(copy, name, track)


def audio_seconds(source: AudioSource, name: str = "audio") -> float | None:
    """The length of a file by its header, or as estimated from its bit rate; ``None`` if neither gives one.

    Args:
        source: a path, the bytes of a file or an open binary file.

    Raises:
        AudioError: it cannot be read.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else name
    seconds = 0.0
    with _opened(source, name) as file:
        if is_misread(file.read(SNDFILE_HEAD)):
            return sndfile_seconds(file, name)
        for link in _links(file):
            with opened_container(link, name) as container:
                sound_track(container, name, None)
                if container.duration is None:
                    return None
                seconds += container.duration / 1e6  # FFmpeg's AV_TIME_BASE
    return seconds


def _links(file: BinaryIO) -> Iterator[BinaryIO]:
    """The links of a chained Ogg file, one after another; any other file as it is, or with its sizes in its header.

    FFmpeg would take the links for one, with the codec, the rate and the channels of the first.
    """
    sizes, places = known_sizes(file), ogg_links(file)
    if len(places) == 1 and not sizes:
        yield file
        return
    for start, end in places:
        with tempfile.TemporaryFile() as link:
            file.seek(start)
            for place in range(start, end, COPIED_AT_ONCE):
                link.write(file.read(min(COPIED_AT_ONCE, end - place)))
            for place, content in sizes.items():
                link.seek(place)
                link.write(content)
            yield link


@contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """A seekable binary file of C's, at its start; a path's is closed at the end, a caller's file is only read."""
    if is_url(source):
        raise AudioError(f"{name}: is a URL, expected a file; download it first and pass its path")
    with ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open(source, "rb"))
            file = _in_place(source, name) or stack.enter_context(_copied(source))
        except FileNotFoundError as error:
            raise AudioError(f"{name}: there is no such file ({error.filename}); check the path") from error
        except IsADirectoryError as error:
            raise AudioError(f"{name}: is a folder, expected an audio file; pass a file in it") from error
        except AudioError:
            raise
        except (PermissionError, ValueError) as error:
            raise AudioError(f"{name}: cannot be read ({error}), expected a readable audio file") from error
        except OSError as error:
            raise _unreadable(name, error) from error
        try:
            yield file
        except OSError as error:
            raise _unreadable(name, error) from error


def _in_place(source: Any, name: str) -> BinaryIO | None:
    """A source as a file that FFmpeg can read in place; ``None`` where it cannot.

    FFmpeg's callbacks must not run Python code: Ctrl-C within it would be lost.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    _check_binary(source, name)
    raw = source.raw if type(source) in (io.BufferedReader, io.BufferedRandom) else source
    whole = type(raw) in (io.FileIO, io.BytesIO) and source.seekable() and source.tell() == 0
    return source if whole else None


def _check_binary(source: Any, name: str) -> None:
    nothing = source.read(0) if hasattr(source, "read") else source
    if not isinstance(nothing, bytes):
        raise AudioError(
            f"{name}: gives {type(nothing).__name__}, expected a path, bytes, a file open in binary mode or "
            "(samples, sampling_rate)"
        )


@contextmanager
def _copied(source: BinaryIO) -> Iterator[BinaryIO]:
    """What is left of a file, on disk, so that it may be longer than memory."""
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(source, copy, COPIED_AT_ONCE)
        copy.seek(0)
        yield copy


def _unreadable(name: str, error: OSError) -> AudioReadError:
    return AudioReadError(f"{name}: cannot be read ({error}); try again later, or copy it to another disk")


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
    check_form(array.shape[1] if array.ndim == 2 else 1, int(rate), name)
    if len(array) > MAX_SECONDS * int(rate):
        raise too_long(name)
    return (array if array.ndim == 2 else array[:, None]), int(rate)

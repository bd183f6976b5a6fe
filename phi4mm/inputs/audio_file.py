"""Audio of any source, block by block; files of every common container and codec by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import io
import itertools
import numbers
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import torch

from phi4mm.errors import AudioError
from phi4mm.inputs.source import is_url

if TYPE_CHECKING:
    import av

FULL_SCALE = 32768.0  # of 16-bit sample values
# Bounds of what is accepted, and of the memory that the work takes.
MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 1000, 4_000_000  # Hz
MAX_SECONDS = 24 * 60 * 60
BLOCK_SAMPLES = 1 << 18  # samples decoded at once, over all channels

# FFmpeg's demuxers of audio and video; none of them opens another file, as those of playlists do.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dts,eac3,flac,flv,iff,ircam,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,"
    "mxf,nistsphere,ogg,pvf,rm,tak,tta,voc,w64,wav,wtv,wv"
)
# Formats that are cut and joined anywhere: a decoder skips bytes that are no frame.
RESYNCHRONISED = {"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "mpeg", "mpegts"}
# Formats whose stream has a duration that is written in the file. FFmpeg estimates that of others from the bit rate.
TIMED = {
    *("aiff", "ape", "au", "caf", "dsf", "flac", "ircam", "mov,mp4,m4a,3gp,3g2,mj2", "nistsphere", "ogg", "tak", "tta"),
    *("voc", "w64", "wv"),
}
DURATION_SLACK = 0.25  # seconds that a duration may be too long: some count the encoder's delay and padding
STREAMED_SIZE = 0x7FFF0000  # a size from here up is what a program writing into a pipe puts for "unknown"; so is 0
SIZE_SLACK = 64  # bytes that a wav's size may be too large: some count the header
MP3_SLACK = 1000  # bytes by which an estimate from the bit rate may be wrong

Samples = tuple[np.ndarray | torch.Tensor | list[Any], int]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO | Samples | Iterator[Samples]


def decoded_blocks(source: AudioSource, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """The samples of a source, block by block, so that memory does not grow with its length.

    Yields:
        Float samples [n, channels] and the sampling rate in Hz, both of which may change on the way; arrays handed in
        come as one block.

    Raises:
        AudioError: there is no such file, it is not audio, it is damaged or truncated (which may show only at its
            end), it is too long, or the samples are not floats.
    """
    if isinstance(source, tuple):
        yield _from_samples(source, name)
    elif isinstance(source, Iterator) and not hasattr(source, "read"):
        for part in source:
            yield _from_samples(part, name)
    else:
        with _opened(source, name) as file:
            _check_wav_size(file, name)
            with _container(file, name) as container:
                yield from _joined(_frames(container, name))


def audio_seconds(path: str | os.PathLike[str]) -> float | None:
    """The length of a file by its header, or as estimated from its bit rate; ``None`` if neither gives one.

    Raises:
        AudioError: it cannot be read.
    """
    name = os.fspath(path)
    with _opened(path, name) as file, _container(file, name) as container:
        return None if container.duration is None else container.duration / 1e6  # FFmpeg's AV_TIME_BASE


@contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """A seekable binary file, at its start; a path's is closed at the end, a caller's file is only read."""
    if is_url(source):
        raise AudioError(f"{name}: is a URL, expected a file; download it first and pass its path")
    with ExitStack() as stack:
        try:
            if isinstance(source, (str, os.PathLike)):
                source = stack.enter_context(open(source, "rb"))
            content = source.read(0 if _at_start(source) else -1) if hasattr(source, "read") else source
        except FileNotFoundError as error:
            raise AudioError(f"{name}: there is no such file ({error.filename}); check the path") from error
        except IsADirectoryError as error:
            raise AudioError(f"{name}: is a folder, expected an audio file; pass a file in it") from error
        except (OSError, ValueError) as error:
            raise AudioError(f"{name}: cannot be read ({error}), expected a readable audio file") from error
        if not isinstance(content, bytes | bytearray | memoryview):
            raise AudioError(
                f"{name}: gives {type(content).__name__}, expected a path, bytes, a file open in binary mode or "
                "(samples, sampling_rate)"
            )
        yield source if _at_start(source) else io.BytesIO(content)


def _at_start(source: Any) -> bool:
    """Whether a source is a file that can be read in place."""
    return hasattr(source, "seekable") and source.seekable() and source.tell() == 0


class _Unnamed:
    """A binary file without its name, by which FFmpeg would guess the format."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refused(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"it names another file, {url}")


@contextmanager
def _container(file: BinaryIO, name: str) -> Iterator[av.container.InputContainer]:
    """A file as FFmpeg finds it to be by its contents."""
    import av

    start = file.read(16)
    file.seek(0)
    if not start:
        raise AudioError(f"{name}: is empty (0 bytes), expected an audio file; write or download it again")
    try:
        container = av.open(
            _Unnamed(file),
            "r",
            options={"format_whitelist": FORMATS, "protocol_whitelist": "none", "max_size": "65536"},
            io_open=_refused,
            metadata_errors="replace",
            buffer_size=1 << 17,
        )
    except av.ArgumentError as error:  # a demuxer that is not in the list
        raise _not_audio(name, "a playlist or another format that is not read", start) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _not_audio(name, getattr(error, "strerror", None) or str(error), start) from error
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name}: has no sound track ({container.format.long_name}); pass a file with sound")
        if container.streams.audio[0].codec_context is None:
            raise _not_audio(name, "its codec is not known", start)
        yield container


def _frames(container: av.container.InputContainer, name: str) -> Iterator[av.AudioFrame]:
    """The frames of a file's first sound track, and at its end whether it was whole."""
    import av

    stream, kind = container.streams.audio[0], container.format.name
    packets = _packets(container, name)
    first = next(packets)  # there is always one, the last is empty
    promised = _promised_seconds(container, first)
    seconds, end, broken, cut = 0.0, 0.0, "", False
    for packet in itertools.chain((first,), packets):
        cut = packet.is_corrupt if packet.size else cut
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            broken = error.strerror or str(error)
            continue
        if frames and broken and kind not in RESYNCHRONISED:
            raise AudioError(
                f"{name}: is damaged or truncated ({broken} at {end:.2f} s), expected a whole file; copy or download "
                "it again"
            )
        for frame in frames:
            _check_format(0, frame.layout.nb_channels, frame.sample_rate, name)
            seconds += frame.samples / frame.sample_rate
            end = max(seconds, (frame.time or 0.0) + frame.samples / frame.sample_rate)
            if seconds > MAX_SECONDS:
                raise _too_long(name)
            yield frame
    # A film's tracks may start late and have gaps: their durations are times, not numbers of samples.
    found = end if kind == "matroska,webm" else seconds
    if promised and found < promised - (1e-4 if broken else DURATION_SLACK):
        raise _truncated(name, f"{promised:.6g} s", f"{found:.6g} s")
    if cut and kind != "wav" and kind not in RESYNCHRONISED:
        raise AudioError(
            f"{name}: is truncated: its last packet is cut, after {found:.6g} s; copy or download it again"
        )
    if broken and not seconds:
        raise _not_audio(name, f"{stream.codec_context.name}: {broken}")


def _packets(container: av.container.InputContainer, name: str) -> Iterator[av.Packet[av.AudioStream]]:
    """The encoded packets of the first sound track; the last is empty and flushes the decoder."""
    import av

    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # of PyAV, at the end of a file in which a stream began on the way; ours has been flushed
            return
        except av.FFmpegError as error:
            raise AudioError(
                f"{name}: is damaged or truncated ({error.strerror}), expected a whole file; copy or download it again"
            ) from error
        except (OSError, ValueError) as error:  # the caller's file fails
            raise AudioError(f"{name}: cannot be read ({error}), expected a readable audio file") from error
        if packet is None:
            return
        yield packet


def _promised_seconds(container: av.container.InputContainer, first: av.Packet[av.AudioStream]) -> float | None:
    """How long a file's sound is by its header; ``None`` where that does not give it."""
    stream, kind = container.streams.audio[0], container.format.name
    if kind == "matroska,webm":
        hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return None
    if stream.duration is None or stream.time_base is None:
        return None
    promised = float(stream.duration * stream.time_base)
    if kind == "mp3":
        # A Xing header's bit rate is that of its own duration and size; of an mp3 without one, FFmpeg estimates the
        # duration so that this is the size which is there.
        there = container.size - (first.pos or 0)
        return promised if promised * (stream.codec_context.bit_rate or 0) / 8 > there + MP3_SLACK else None
    return promised if kind in TIMED else None


def _joined(frames: Iterator[av.AudioFrame]) -> Iterator[tuple[np.ndarray, int]]:
    """Frames joined to blocks: float32 samples [n, channels] and their rate in Hz. Each block has one form."""
    import av

    fifo, before = av.AudioFifo(), ("", 0, "")
    for frame in frames:
        form = (frame.layout.name, frame.sample_rate, frame.format.name)
        if fifo.samples and (form != before or fifo.samples * frame.layout.nb_channels >= BLOCK_SAMPLES):
            yield _block(fifo.read())
        if form != before:
            fifo, before = av.AudioFifo(), form
        frame.pts = None  # the queue would refuse frames with a gap between them
        fifo.write(frame)
    if fifo.samples:
        yield _block(fifo.read())


def _block(frame: av.AudioFrame | None) -> tuple[np.ndarray, int]:
    assert frame is not None  # the queue was not empty
    samples = frame.to_ndarray()  # planar: [channels, n], packed: [1, n * channels]
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    return _to_floats(samples), frame.sample_rate


def _to_floats(samples: np.ndarray) -> np.ndarray:
    """Whole numbers of any width, or floats, as float32 in [-1, 1]."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
            return samples.astype(np.float32, copy=False)
    half = np.float32(2.0 ** (8 * samples.itemsize - 1))
    floats = samples.astype(np.float32)
    if samples.dtype.kind == "u":
        floats -= half
    return np.divide(floats, half, out=floats)


def _check_wav_size(file: BinaryIO, name: str) -> None:
    """Compares the size that a wav's header gives with what is there, which FFmpeg does not."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    orders: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big"}
    order = orders.get(head[:4], "little")
    promised = there = 0
    while head[8:] == b"WAVE" and head[:4] in orders and len(chunk := file.read(8)) == 8:
        length = int.from_bytes(chunk[4:], order)
        if chunk[:4] == b"data":
            promised, there = promised or length, size - file.tell()
            break
        if chunk[:4] == b"ds64":  # a size of 64 bits, second in its chunk
            promised = int.from_bytes(file.read(16)[8:], order)
            length -= 16
        file.seek(max(length, 0) + length % 2, io.SEEK_CUR)
    file.seek(0)
    unknown = promised >= STREAMED_SIZE and head[:4] != b"RF64"
    if promised > there + SIZE_SLACK and not unknown:
        raise _truncated(name, f"{promised} bytes", f"{there}")


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
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: sampling rate {rate} Hz, expected {MIN_RATE} to {MAX_RATE}; give its true rate")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name}: {channels} channels, expected 1 to {MAX_CHANNELS}; samples have shape [n] or [n, channels]"
        )
    if frames > MAX_SECONDS * rate:
        raise _too_long(name)


def _too_long(name: str) -> AudioError:
    return AudioError(f"{name}: is longer than {MAX_SECONDS // 3600} hours; cut it into shorter files")


def _not_audio(name: str, reason: str, start: bytes = b"") -> AudioError:
    reason += f"; it starts with {start!r}" if start else ""
    return AudioError(
        f"{name}: is not audio that can be read ({reason}), expected a whole file with sound: wav, flac, ogg, opus, "
        "mp3, m4a, mp4, mkv, webm or the like; convert it (ffmpeg) or download it again"
    )


def _truncated(name: str, promised: str, there: str) -> AudioError:
    return AudioError(
        f"{name}: is truncated: its header promises {promised} of audio, {there} are there; copy or download it again"
    )

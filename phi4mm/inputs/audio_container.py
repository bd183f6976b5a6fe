"""One sound track of one container, decoded by FFmpeg's libraries (PyAV) and laid out on the container's time line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from phi4mm.errors import AudioError
from phi4mm.inputs.file_layout import LARGEST_FILE, truncated
from phi4mm.inputs.pipe import Pipe

if TYPE_CHECKING:
    import av

MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 1000, 4_000_000  # Hz
MAX_SECONDS = 24 * 60 * 60
BLOCK_SAMPLES = 1 << 18  # samples decoded at once, over all channels

PROBED_OF_PIPE = "65536"  # bytes by which FFmpeg finds out what it is; by default 5 MB, which may take minutes to come

# FFmpeg's demuxers of audio and video; none of them opens another file, as those of playlists do.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,avr,caf,dsf,dss,dts,dv,eac3,flac,flv,iff,ircam,loas,matroska,mlp,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,mxf,nistsphere,ogg,oma,pvf,qcp,qoa,rm,shn,tak,truehd,tta,voc,w64,wav,wtv,wv,xwma"
)
MATROSKA, MOV = "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"  # as FFmpeg calls them
# Formats that are cut and joined anywhere: a decoder skips bytes that are no frame.
RESYNCHRONISED = {"aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "mpeg", "mpegts"}
# Formats whose stream has a duration that is written in the file, where ``file_layout`` does not know their layout, or
# where it tells more. FFmpeg estimates that of others from the bit rate.
TIMED = {"ape", "dsf", "flac", MOV, "nistsphere", "tak", "tta", "wv"}
# Seconds by which a duration may be too long: some count the encoder's delay and padding.
SLACK = {MATROSKA: 0.25, MOV: 0.25, "flv": 0.25}
LEAST_SLACK = 0.01
MOST_JUNK = 1000  # times that FFmpeg looks for the next packet in 64 KB that hold none

# Formats whose packets are stamped with times; those of others are their places in the file.
STAMPED = {"asf", "avi", "flv", MATROSKA, MOV, "mpeg", "mpegts", "mxf", "ogg", "rm", "wtv"}
FROM_ZERO = {"avi", MATROSKA, MOV}  # whose times begin with the film; in others they begin anywhere
JITTER = 0.1  # seconds between two stamps that are no gap
# Seconds. A file that begins later than this is a part of something live, whose times begin anywhere; a longer gap is a
# stamp that is wrong.
LONGEST_GAP = 3600.0
SPLICED = {"mpeg", "mpegts", "ogg", "rm", "wtv"}  # where recordings are joined, or begin anew
SPLICE = 10.0  # seconds; a further jump is such a place, as the ffmpeg program has it (-dts_delta_threshold)


class _Unnamed:
    """A binary file without its name, by which FFmpeg would guess the format.

    Seeks to where headers of nonsense point end at ``LARGEST_FILE``; farther on, some file systems make errors of them.
    """

    def __init__(self, file: BinaryIO | Pipe) -> None:
        self.read = file.read
        if not isinstance(file, Pipe):
            whole = file
            self.seek = lambda place, whence=0: whole.seek(min(place, LARGEST_FILE), whence)
            self.tell = whole.tell


def _refused(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"it names another file, {url}")


@contextmanager
def opened_container(file: BinaryIO | Pipe, name: str) -> Iterator[av.container.InputContainer]:
    """A file, from its start, or a pipe, as FFmpeg finds it to be by its contents.

    Raises:
        AudioError: it is not audio or video of a format in ``FORMATS``.
        OSError: the file fails.
    """
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", "max_size": "65536"}
    if isinstance(file, Pipe):
        start, options["probesize"] = file.start[:16], PROBED_OF_PIPE
    else:
        file.seek(0)
        start = file.read(16)
        file.seek(0)
    if not start:
        raise AudioError(f"{name}: is empty (0 bytes), expected an audio file; write or download it again")
    try:
        container = av.open(
            _Unnamed(file),
            "r",
            options=options,
            io_open=_refused,
            metadata_errors="replace",
            buffer_size=1 << 17,
        )
    except av.ArgumentError as error:  # a demuxer that is not in the list
        raise _not_audio(name, "a playlist or another format that is not read", start) from error
    except (av.FFmpegError, ValueError) as error:
        raise _not_audio(name, getattr(error, "strerror", None) or str(error), start) from error
    with container:
        yield container


def sound_track(container: av.container.InputContainer, name: str, track: int | None) -> av.AudioStream:
    """A container's sound track of this number, counted from 0.

    ``None`` takes what a player takes: the first one that is marked as default, or else the first, of those whose codec
    is known.

    Raises:
        AudioError: there is no such track, or its codec is not known.
    """
    import av

    tracks = container.streams.audio
    if not tracks:
        raise AudioError(f"{name}: has no sound track ({container.format.long_name}); pass a file with sound")
    check_track(track, len(tracks), name)
    if track is not None:
        known = [tracks[track]] if tracks[track].codec_context else []
    else:
        known = [one for one in tracks if one.codec_context]
        known.sort(key=lambda one: not one.disposition & av.stream.Disposition.default)
    if not known:
        raise _not_audio(name, "its codec is not known")
    if container.format.name == "caf" and known[0].codec_context.name == "alac":
        # FFmpeg would drop what is missing in the last packet, which has no more than there is, from its end again.
        known[0].codec_context.flags2 |= av.codec.context.Flags2.skip_manual
    return known[0]


def check_track(track: int | None, count: int, name: str) -> None:
    """Refuses a number of a sound track of which a file has ``count``."""
    if track is not None and not 0 <= track < count:
        tracks = f"{count} sound tracks" if count > 1 else "one sound track"
        raise AudioError(f"{name}: has no sound track {track + 1}, it has {tracks}; take one of those")


def blocks(
    container: av.container.InputContainer, stream: av.AudioStream, name: str, at_once: int = BLOCK_SAMPLES
) -> Iterator[tuple[np.ndarray, int]]:
    """A track's samples from the beginning of the container's time, with silence where it has none.

    Args:
        at_once: samples of a block, over all channels.

    Yields:
        float32 samples [n, channels] and the sampling rate in Hz, which may both change on the way.

    Raises:
        AudioError: the track is damaged or truncated, or longer than 24 hours.
    """
    import av

    line = _TimeLine(container)
    fifo, before = av.AudioFifo(), ("", 0, "")
    for frame in _frames(container, stream, name):
        form = (frame.layout.name, frame.sample_rate, frame.format.name)
        silence = line.silence_before(frame)
        if line.position > MAX_SECONDS:
            raise too_long(name)
        full = fifo.samples * frame.layout.nb_channels >= at_once
        if fifo.samples and (silence or form != before or full):
            yield _block(fifo.read())
        if form != before:
            fifo, before = av.AudioFifo(), form
        yield from _silence(silence, frame.layout.nb_channels, frame.sample_rate)
        frame.pts = None  # the queue would refuse frames with a gap between them
        fifo.write(frame)
    if fifo.samples:
        yield _block(fifo.read())


class _TimeLine:
    """Where frames lie on a container's time line.

    Attributes:
        position: where the frames so far end, in seconds.
    """

    def __init__(self, container: av.container.InputContainer) -> None:
        kind, start = container.format.name, (container.start_time or 0) / 1e6  # FFmpeg's AV_TIME_BASE
        self.position = 0.0
        self._stamped = kind in STAMPED
        self._spliced = kind in SPLICED
        self._offset = 0.0 if start < (LONGEST_GAP if kind in FROM_ZERO else 0.0) else -start
        self._least_gap = 0.0 if kind in FROM_ZERO else JITTER
        self._started = False

    def silence_before(self, frame: av.AudioFrame) -> int:
        """Puts a frame on the line; the samples of silence between it and the one before it.

        A time that goes back begins to count anew: files that were joined, or stamps that were lost.
        """
        gap = 0.0
        if self._stamped and frame.time is not None:
            gap = frame.time + self._offset - self.position
            longest = SPLICE if self._spliced and self._started else LONGEST_GAP
            if gap > longest or gap < -SPLICE:
                self._offset -= gap
            gap = gap if self._least_gap < gap <= longest else 0.0
        self._started, self._least_gap = True, JITTER
        self.position += gap + frame.samples / frame.sample_rate
        return round(gap * frame.sample_rate)


def _silence(samples: int, channels: int, rate: int) -> Iterator[tuple[np.ndarray, int]]:
    most = BLOCK_SAMPLES // channels
    for start in range(0, samples, most):
        yield np.zeros((min(most, samples - start), channels), np.float32), rate


def _frames(container: av.container.InputContainer, stream: av.AudioStream, name: str) -> Iterator[av.AudioFrame]:
    """The frames of a file's sound track, and at its end whether it was whole."""
    import av

    kind = container.format.name
    promised = _promised_seconds(container, stream)
    seconds, begin, end, broken = 0.0, None, 0.0, ""
    packets = _Packets(container, stream, name)
    for packet in packets:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            broken = error.strerror or str(error)
            continue
        if frames and broken and kind not in RESYNCHRONISED:
            raise _damaged(name, f"{broken} at {end:.2f} s")
        for frame in frames:
            check_form(frame.layout.nb_channels, frame.sample_rate, name)
            begin = frame.time or 0.0 if begin is None else begin
            seconds += frame.samples / frame.sample_rate
            end = max(seconds, (frame.time or 0.0) + frame.samples / frame.sample_rate)
            yield frame
    # A film's tracks may start late and have gaps: their durations are times, not numbers of samples.
    found = end if kind == MATROSKA else max(seconds, end - (begin or 0.0)) if kind in (MOV, "flv") else seconds
    if promised and found < promised - (1e-4 if broken else SLACK.get(kind, LEAST_SLACK)):
        raise truncated(name, f"{promised:.6g} s of audio", f"{found:.6g} s")
    if packets.failure and not promised:
        raise _damaged(name, packets.failure)
    if broken and not seconds:
        raise _not_audio(name, f"{stream.codec_context.name}: {broken}")


class _Packets:
    """The encoded packets of a sound track; the last is empty and flushes the decoder.

    Attributes:
        failure: why there are no more, where that is not the end of the file.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.AudioStream, name: str) -> None:
        self._container, self._stream, self._name = container, stream, name
        self.failure = ""

    def __iter__(self) -> Iterator[av.Packet[av.AudioStream]]:
        import av

        junk = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (
                IndexError
            ):  # of PyAV, at the end of a file in which a stream began on the way; ours has been flushed
                return
            except av.BlockingIOError:  # a transport stream with something else in it
                packets, junk = self._container.demux(self._stream), junk + 1
                if junk > MOST_JUNK:
                    raise _damaged(self._name, "no packets in it") from None
                continue
            except av.FFmpegError as error:  # at the end of a file: a tag, perhaps
                self.failure = error.strerror or str(error)
                return
            except ValueError as error:  # the caller's file was closed
                raise AudioError(f"{self._name}: cannot be read ({error}), expected a readable audio file") from error
            if packet is None:
                return
            junk = 0
            yield packet


def _promised_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """How long a track is by its header; ``None`` where that does not give it."""
    kind = container.format.name
    if kind == MATROSKA:
        hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
        minutes, _, seconds = rest.partition(":")
        try:
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return None
    if kind == "flv" and len(container.streams) == 1 and container.duration is not None:
        return container.duration / 1e6
    if stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base) if kind in TIMED else None


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


def check_form(channels: int, rate: int, name: str) -> None:
    """Refuses a sampling rate or a number of channels out of bounds, which would take memory without end."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: sampling rate {rate} Hz, expected {MIN_RATE} to {MAX_RATE}; give its true rate")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name}: {channels} channels, expected 1 to {MAX_CHANNELS}; samples have shape [n] or [n, channels]"
        )


def too_long(name: str) -> AudioError:
    return AudioError(f"{name}: is longer than {MAX_SECONDS // 3600} hours; cut it into shorter files")


def _damaged(name: str, reason: str) -> AudioError:
    return AudioError(f"{name}: is damaged or truncated ({reason}), expected a whole file; copy or download it again")


def _not_audio(name: str, reason: str, start: bytes = b"") -> AudioError:
    reason += f"; it starts with {start!r}" if start else ""
    return AudioError(
        f"{name}: is not audio that can be read ({reason}), expected a whole file with sound: wav, flac, ogg, opus, "
        "mp3, m4a, mp4, mkv, webm or the like; convert it (ffmpeg) or download it again"
    )

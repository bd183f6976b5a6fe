"""Audio of any rate, channel count and common format -> mono waveform -> log-mel frames.

Files are decoded by libsndfile (soundfile) and resampled by soxr.
"""

from __future__ import annotations

import io
import numbers
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile
import torch

from phi4mm.errors import AudioError
from phi4mm.inputs.source import is_url, source_name

# Framing, in seconds, so that it holds at both of the model's rates.
SAMPLING_RATE = 16000
LOW_SAMPLING_RATE = 8000
FRAMES_PER_SECOND = 100  # a hop is 10 ms: 160 samples, or 80 at 8 kHz
WINDOWS_PER_SECOND = 40  # a window is 25 ms: 400 samples, or 200 at 8 kHz
# The spectrum, always that of 16 kHz: 257 bins of 31.25 Hz.
FFT_SIZE = 512
NUM_BINS = FFT_SIZE // 2 + 1
NUM_MELS = 80
MAX_FREQUENCY = 7690.0  # Hz, the upper edge of the last mel triangle
PREEMPHASIS = 0.97
FULL_SCALE = 32768.0  # the model was trained on 16-bit sample values
MEL_FLOOR = 1.0
# Bounds of what is accepted, and of the memory that the work takes.
MAX_CHANNELS = 64
MAX_RATE = 4_000_000  # Hz
MAX_SECONDS = 24 * 60 * 60
MAX_AMPLITUDE = 8.0  # a float sample beyond this was not scaled to [-1, 1]
BLOCK_SAMPLES = 1 << 20  # samples decoded at once, over all channels
BLOCK_FRAMES = 4096  # log-mel frames computed at once
STREAMED_SIZE = 0x7FFF0000  # a size from here up is what a program writing into a pipe puts for "unknown"; so is 0
UNKNOWN_FRAMES = 1 << 62  # the same in libsndfile
MP3_TAIL = 512  # bytes of tags that may follow the last frame of an mp3 (ID3v1: 128, extended 355)

# How a container counts, and where it keeps its samples.
_CHUNKS: dict[bytes, tuple[Literal["little", "big"], bytes]] = {
    b"RIFF": ("little", b"data"),
    b"RIFX": ("big", b"data"),
    b"FORM": ("big", b"SSND"),
}

AudioSource = str | os.PathLike[str] | bytes | BinaryIO | tuple[np.ndarray | torch.Tensor | list[Any], int]


@dataclass(frozen=True)
class Waveform:
    """Mono audio.

    Attributes:
        samples: float32 [n], in [-1, 1].
        sampling_rate: in Hz.
    """

    samples: np.ndarray
    sampling_rate: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sampling_rate


def load_audio(source: AudioSource, *, name: str | None = None) -> Waveform:
    """Decodes audio and mixes its channels down to their mean; the sampling rate stays as it is.

    Args:
        source: a path, the bytes of a file or an open binary file (wav, flac, ogg, opus, mp3: what libsndfile reads),
            or ``(samples, sampling_rate)`` with float samples in [-1, 1] of shape [n] or [n, channels]. Never a URL.
        name: what errors call the input; by default the file's path, or "audio".

    Raises:
        AudioError: there is no such file, it is not audio, it is damaged or truncated, it is shorter than one log-mel
            frame (25 ms) or longer than 24 hours, or the samples are not finite floats in [-1, 1].
    """
    name = name or source_name(source, "audio")
    samples, rate = _from_samples(source, name) if isinstance(source, tuple) else _decode(source, name)
    if not len(samples):
        raise AudioError(f"{name}: has no samples, expected at least 25 ms of sound; record or download it again")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name}: has NaN or infinite samples; replace them (numpy.nan_to_num) and pass it again")
    peak = float(np.abs(samples).max())
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{name}: samples reach {peak:.6g}, expected floats in [-1, 1]; divide 16-bit values by {FULL_SCALE:.0f}"
        )
    if len(samples) * WINDOWS_PER_SECOND < rate:
        raise AudioError(
            f"{name}: {len(samples)} samples at {rate} Hz are {1000 * len(samples) / rate:.3g} ms, shorter than one "
            "frame (25 ms); pass a longer clip"
        )
    return Waveform(samples, rate)


def resample_for_model(waveform: Waveform) -> Waveform:
    """Resamples to one of the two rates that the model knows, with soxr's high quality.

    16000 Hz and above become 16000. Everything below becomes 8000: the model was trained on 8 kHz audio with the upper
    half of the spectrum empty, so a narrow band is shown to it as that, as Microsoft's own processor does for rates
    between 8000 and 16000; rates under 8000, which that processor refuses, are resampled up.
    """
    rate = SAMPLING_RATE if waveform.sampling_rate >= SAMPLING_RATE else LOW_SAMPLING_RATE
    if waveform.sampling_rate == rate:
        return waveform
    import soxr

    return Waveform(soxr.resample(waveform.samples, waveform.sampling_rate, rate, quality="HQ"), rate)


def log_mel(waveform: Waveform, *, num_mels: int = NUM_MELS) -> torch.Tensor:
    """Natural logarithm of the mel spectrum, as microsoft/Phi-4-multimodal-instruct's processing_phi4mm.py defines it.

    Each 25 ms window, every 10 ms and without padding (the remainder is dropped), is pre-emphasised on its own, scaled
    to 16-bit values, weighted with a symmetric Hamming window and summed into mel triangles of its power spectrum,
    floored at 1. The spectrum of 8 kHz audio is extended with zeros to that of 16 kHz. Other rates are resampled first.

    Returns:
        float32 [frames, num_mels], frames = 1 + (samples - window) // hop at the model's rate.

    Raises:
        AudioError: the audio is shorter than one window.
    """
    waveform = resample_for_model(waveform)
    rate = waveform.sampling_rate
    window_length, hop = rate // WINDOWS_PER_SECOND, rate // FRAMES_PER_SECOND
    if len(waveform.samples) < window_length:
        raise AudioError(
            f"audio: {len(waveform.samples)} samples at {rate} Hz are shorter than one frame ({window_length} samples, "
            "25 ms); pass a longer clip"
        )
    samples = torch.from_numpy(np.ascontiguousarray(waveform.samples, dtype=np.float32))
    window = torch.hamming_window(window_length, periodic=False, dtype=torch.float64)
    filters = mel_filters(num_mels)
    blocks = []
    for frames in samples.unfold(0, window_length, hop).split(BLOCK_FRAMES):
        # Before its first sample a window repeats that sample.
        previous = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        emphasised = (frames - PREEMPHASIS * previous) * FULL_SCALE
        # float64: in float32 the rounding of a loud bin would show in the quiet ones beside it.
        spectrum = torch.fft.rfft(emphasised * window, n=FFT_SIZE * rate // SAMPLING_RATE)
        power = (spectrum.real.square() + spectrum.imag.square()).float()
        if rate == LOW_SAMPLING_RATE:  # its Nyquist bin is dropped too
            power = torch.nn.functional.pad(power[:, :-1], (0, NUM_BINS - power.shape[1] + 1))
        blocks.append((power @ filters).clamp_(min=MEL_FLOOR).log_())
    return torch.cat(blocks)


@lru_cache(maxsize=8)
def mel_filters(num_mels: int = NUM_MELS) -> torch.Tensor:
    """Triangles over the 16 kHz spectrum, evenly spaced and linear in mel = 1127 ln(1 + f / 700), from 0 Hz to 7690 Hz.

    The mel scale and the shape are Kaldi's (mel-computations.h).

    Returns:
        float32 [257, num_mels]; shared, so not to be written to.
    """
    bins = _mel(np.arange(NUM_BINS) * (SAMPLING_RATE / FFT_SIZE))[:, None]
    edges = np.linspace(_mel(0.0), _mel(MAX_FREQUENCY), num_mels + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    return torch.from_numpy(triangles.astype(np.float32))


def _mel(frequency: Any) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(frequency) / 700.0)


def _from_samples(source: tuple[Any, ...], name: str) -> tuple[np.ndarray, int]:
    """Checks ``(samples, sampling_rate)`` and mixes it down."""
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
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused later
        mono = array if array.ndim == 1 else array.mean(axis=1, dtype=np.float64)
        return mono.astype(np.float32), int(rate)


def _check_format(frames: int, channels: int, rate: int, name: str) -> None:
    if not 0 < rate <= MAX_RATE:
        raise AudioError(f"{name}: sampling rate {rate} Hz, expected 1 to {MAX_RATE}; give its true rate")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            f"{name}: {channels} channels, expected 1 to {MAX_CHANNELS}; samples have shape [n] or [n, channels]"
        )
    if frames > MAX_SECONDS * rate:
        raise AudioError(f"{name}: is longer than {MAX_SECONDS // 3600} hours; cut it into shorter files")


def _decode(source: Any, name: str) -> tuple[np.ndarray, int]:
    """Reads a file block by block, mixing each down at once."""
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
                return _read_mono(file, stream, lead, name), file.samplerate
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


def _read_mono(file: soundfile.SoundFile, stream: BinaryIO, lead: int, name: str) -> np.ndarray:
    """All samples after the first ``lead``."""
    promised = file.frames
    blocks, total = [], 0
    while len(block := file.read(BLOCK_SAMPLES // file.channels, dtype="float32", always_2d=True)):
        blocks.append(block.mean(axis=1))
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
    return np.concatenate(blocks)[lead:] if blocks else np.zeros(0, np.float32)


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

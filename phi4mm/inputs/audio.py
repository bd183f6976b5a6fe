"""Audio of any rate, channel count and common format -> mono waveform -> log-mel frames.

Files are decoded by FFmpeg's libraries (PyAV) and resampled by soxr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phi4mm.errors import AudioError
from phi4mm.inputs.audio_file import FULL_SCALE, AudioSource, decoded_blocks
from phi4mm.inputs.mixing import mixed
from phi4mm.inputs.source import source_name, unwrapped

if TYPE_CHECKING:
    import soxr

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
MEL_FLOOR = 1.0
# A recording at 8 kHz that was resampled to 16 kHz, by whatever filter, against speech at 16 kHz with its noise.
NARROW_BAND = 4000.0  # Hz, all of what it holds
EMPTY_FROM, EMPTY_BELOW = 5000.0, -55.0  # Hz, and decibels beside the energy of the narrow band
LARGEST_GAIN = 32.0  # 30 dB; more would make speech of noise
MAX_AMPLITUDE = 8.0  # a float sample beyond this was not scaled to [-1, 1]
BLOCK_FRAMES = 128  # log-mel frames computed at once: they stay in a core's cache
MELS_AT_ONCE = 16


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


def load_audio(
    source: AudioSource, *, name: str | None = None, channel: int | None = None, track: int | None = None
) -> Waveform:
    """Decodes audio and mixes its channels down to their mean (see ``mixing``); the sampling rate stays as it is.

    Args:
        source: a path, the bytes of a file or an open binary file (wav, flac, ogg, opus, mp3, m4a, mp4, mkv, webm ...:
            what FFmpeg reads), or ``(samples, sampling_rate)`` with float samples in
            [-1, 1] of shape [n] or [n, channels], or an iterator of such consecutive parts; or what a row of
            ``datasets`` holds, such as ``{"array": ..., "sampling_rate": ...}``. Never a URL. Where the
            rate changes on the way, all is resampled to the first.
        name: what errors call the input; by default the file's path, or "audio".
        channel: take this one alone, counted from 0, instead of the mean of all.
        track: take this sound track of the file, counted from 0, instead of the one that players take: the first that
            is marked as default. Its time is the file's: one that begins late begins with silence.

    Raises:
        AudioError: there is no such file, it is not audio, it is damaged or truncated, it is shorter than one log-mel
            frame (25 ms) or longer than 24 hours, the samples are not finite floats in [-1, 1], or there is no such
            channel or track.
        AudioReadError: reading it failed; another time it may not.
    """
    blocks = _mono_blocks(source, name or source_name(source, "audio"), channel, track)
    parts = list(_at_one_rate(blocks, lambda rate: rate))
    return Waveform(np.concatenate([part.samples for part in parts]), parts[0].sampling_rate)


def stream_audio(
    source: AudioSource, *, name: str | None = None, channel: int | None = None, track: int | None = None
) -> Iterator[Waveform]:
    """As ``load_audio`` and ``resample_for_model``, block by block: memory does not grow with the length.

    Yields:
        The audio's consecutive parts, all at one of the model's two rates: that for the rate at which it begins.

    Raises:
        AudioError: as ``load_audio``; what is wrong with a file's end shows there.
    """
    yield from _at_one_rate(_mono_blocks(source, name or source_name(source, "audio"), channel, track), model_rate)


def _at_one_rate(blocks: Iterator[Waveform], target: Callable[[int], int]) -> Iterator[Waveform]:
    """Consecutive blocks of any rates, resampled to the target of the first one's."""
    stream: soxr.ResampleStream | None = None
    before = rate = 0
    for block in blocks:
        if block.sampling_rate != before:
            if stream is not None:
                yield _last_of(stream, rate)
            rate, before = rate or target(block.sampling_rate), block.sampling_rate
            stream = None if before == rate else resampler(before, rate)
        yield block if stream is None else Waveform(stream.resample_chunk(block.samples), rate)
    if stream is not None:
        yield _last_of(stream, rate)


def resampler(before: int, after: int) -> soxr.ResampleStream:
    """Resamples mono float32 samples from one rate to another, part by part."""
    import soxr  # which audio at the model's rates does without

    return soxr.ResampleStream(before, after, 1, dtype="float32", quality="HQ")


def _last_of(stream: soxr.ResampleStream, rate: int) -> Waveform:
    return Waveform(stream.resample_chunk(np.zeros(0, np.float32), last=True), rate)


def num_channels(source: AudioSource, *, name: str | None = None, track: int | None = None) -> int:
    """How many channels a source has, or this track of it.

    Raises:
        AudioError: it cannot be read.
    """
    name = name or source_name(source, "audio")
    for block, _ in decoded_blocks(unwrapped(source), name, track=track):
        return block.shape[1]
    raise _no_samples(name)


def _mono_blocks(source: AudioSource, name: str, channel: int | None, track: int | None) -> Iterator[Waveform]:
    lengths: dict[int, int] = {}  # samples at each rate
    for block, rate in _one_channel(decoded_blocks(unwrapped(source), name, track=track), name, channel):
        lengths[rate] = lengths.get(rate, 0) + len(block)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
            samples = block.astype(np.float32)
        _check_samples(samples, name)
        yield Waveform(samples, rate)
    if not any(lengths.values()):
        raise _no_samples(name)
    windows = sum(length * WINDOWS_PER_SECOND / rate for rate, length in lengths.items())
    if windows < 1:
        there = " and ".join(f"{length} samples at {rate} Hz" for rate, length in lengths.items())
        raise AudioError(
            f"{name}: {there} are {1000 * windows / WINDOWS_PER_SECOND:.3g} ms, shorter than one frame (25 ms); pass a "
            "longer clip"
        )


def _one_channel(
    blocks: Iterator[tuple[np.ndarray, int]], name: str, channel: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks [n, channels] to [n]: a channel, or all of them mixed."""
    if channel is None:
        yield from mixed(blocks)
        return
    for block, rate in blocks:
        if not 0 <= channel < block.shape[1]:
            raise AudioError(
                f"{name}: has no channel {channel + 1}, it has {block.shape[1]}; take one of those, or the mean of all"
            )
        yield block[:, channel], rate


def _check_samples(samples: np.ndarray, name: str) -> None:
    peak = float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError(f"{name}: has NaN or infinite samples; replace them (numpy.nan_to_num) and pass it again")
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{name}: samples reach {peak:.6g}, expected floats in [-1, 1]; divide 16-bit values by {FULL_SCALE:.0f}"
        )


def _no_samples(name: str) -> AudioError:
    return AudioError(f"{name}: has no samples, expected at least 25 ms of sound; record or download it again")


def model_rate(sampling_rate: int) -> int:
    """The rate at which the model takes audio of this rate: 16000 Hz, or 8000 for all below (a narrow band)."""
    return SAMPLING_RATE if sampling_rate >= SAMPLING_RATE else LOW_SAMPLING_RATE


def resample_for_model(waveform: Waveform) -> Waveform:
    """Resamples to one of the two rates that the model takes, with soxr's high quality.

    16000 Hz and above become 16000. Everything below becomes 8000: the model was trained on 8 kHz audio with the upper
    half of the spectrum empty, so a narrow band is given to it as that, as Microsoft's own processor does for rates
    between 8000 and 16000; rates under 8000, which that processor refuses, are resampled up.
    """
    rate = model_rate(waveform.sampling_rate)
    if waveform.sampling_rate == rate:
        return waveform
    import soxr

    return Waveform(soxr.resample(waveform.samples, waveform.sampling_rate, rate, quality="HQ"), rate)


def is_narrow_band(waveform: Waveform) -> bool:
    """Whether audio at 16 kHz holds nothing above 4 kHz, so that it was recorded at 8 kHz and resampled.

    That is: above 5 kHz, where no resampler's slope reaches, lies less than -55 dB of the energy below 4 kHz. Speech
    that was recorded at 16 kHz has more there, if only as noise (AN4's quietest clip: -46 dB). For clips under 32 ms it
    is always ``False``.
    """
    if waveform.sampling_rate != SAMPLING_RATE:
        return False
    whole = len(waveform.samples) // FFT_SIZE * FFT_SIZE
    spectrum = np.fft.rfft(waveform.samples[:whole].reshape(-1, FFT_SIZE) * np.hanning(FFT_SIZE))
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).sum(axis=0)
    frequencies = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLING_RATE)
    low, high = power[frequencies < NARROW_BAND].sum(), power[frequencies >= EMPTY_FROM].sum()
    return bool(high < low * 10 ** (EMPTY_BELOW / 10))


def narrowed(waveform: Waveform) -> Waveform:
    """Audio at the rate for the model, at 8 kHz where it is a narrow band (see ``is_narrow_band``)."""
    waveform = resample_for_model(waveform)
    if not is_narrow_band(waveform):
        return waveform
    import soxr

    return Waveform(soxr.resample(waveform.samples, SAMPLING_RATE, LOW_SAMPLING_RATE, quality="HQ"), LOW_SAMPLING_RATE)


def levelled(waveform: Waveform, peak: float) -> Waveform:
    """Audio scaled so that the magnitude of its loudest sample is ``peak``; but by ``LARGEST_GAIN`` at most."""
    loudest = float(np.abs(waveform.samples).max(initial=0.0))
    gain = min(peak, LARGEST_GAIN * loudest) / loudest if loudest else 1.0
    return Waveform(waveform.samples * np.float32(gain), waveform.sampling_rate)


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
    samples = np.ascontiguousarray(waveform.samples, dtype=np.float32)
    # The model was trained on 16-bit sample values.
    window = np.hamming(window_length) * FULL_SCALE
    emphasised = samples.copy()
    emphasised[1:] -= np.float32(PREEMPHASIS) * samples[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(emphasised, window_length)[::hop]
    firsts = samples[: len(samples) - window_length + 1 : hop]
    mels = np.empty((len(frames), num_mels), np.float32)
    for start in range(0, len(frames), BLOCK_FRAMES):
        block = slice(start, start + BLOCK_FRAMES)
        # float64: in float32 the rounding of a loud bin would show in the quiet ones beside it.
        windowed = frames[block] * window
        windowed[:, 0] = (1 - PREEMPHASIS) * firsts[block] * window[0]  # before its first sample a window repeats it
        spectrum = np.fft.rfft(windowed, n=FFT_SIZE * rate // SAMPLING_RATE)
        power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
        if rate == LOW_SAMPLING_RATE:  # its Nyquist bin is dropped too
            power = np.pad(power[:, :-1], ((0, 0), (0, NUM_BINS - power.shape[1] + 1)))
        for some_mels, bins, weights in _filter_groups(num_mels):
            mels[block, some_mels] = power[:, bins] @ weights
    return torch.from_numpy(np.log(np.maximum(mels, MEL_FLOOR, out=mels), out=mels))


@lru_cache(maxsize=8)
def mel_filters(num_mels: int = NUM_MELS) -> np.ndarray:
    """Triangles over the 16 kHz spectrum, evenly spaced and linear in mel = 1127 ln(1 + f / 700), from 0 Hz to 7690 Hz.

    The mel scale and the shape are Kaldi's (mel-computations.h).

    Returns:
        float32 [257, num_mels]; shared, so not to be written to.
    """
    bins = _mel(np.arange(NUM_BINS) * (SAMPLING_RATE / FFT_SIZE))[:, None]
    edges = np.linspace(_mel(0.0), _mel(MAX_FREQUENCY), num_mels + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0)
    return triangles.astype(np.float32)


@lru_cache(maxsize=8)
def _filter_groups(num_mels: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Mels, the bins that they reach, and the weights between: a quarter of the whole matrix. The products are so small
    that BLAS starts no threads for them, which would spin beside those that decode meanwhile."""
    filters = mel_filters(num_mels)
    groups = []
    for first in range(0, num_mels, MELS_AT_ONCE):
        mels = slice(first, first + MELS_AT_ONCE)
        reached = np.flatnonzero(filters[:, mels].any(axis=1))
        bins = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)
        groups.append((mels, bins, np.ascontiguousarray(filters[bins, mels])))
    return groups


def _mel(frequency: Any) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(frequency) / 700.0)

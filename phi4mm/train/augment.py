"""Augmentation: of waveforms, ahead of training; of log-mels and of whole batches of them, while training.

A waveform changes its pace and pitch, room, rate and surroundings; log-mels change their pace; a batch changes its
channel, noise, voice-tract length and loudness, and loses bands and moments (SpecAugment, Park et al. 2019). All
randomness comes from the generator that is handed in.
"""

from __future__ import annotations

import math

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from scipy.signal import fftconvolve
from torch import Tensor

from phi4mm.inputs.audio import LOW_SAMPLING_RATE, SAMPLING_RATE, Waveform

Samples = np.ndarray

# Waveforms.
SPEED = (0.8, 1.25)
SILENCE_SECONDS = (0.0, 0.5)
REVERBERATION_SECONDS = (0.05, 0.4)
REVERBERATED = 0.25  # share of clips
TRIMMED = 0.5  # share of clips cut to where they are loud
QUIET = (0.01, 0.2)  # of the peak; the high end cuts off weak consonants, as FSDD's trimming does
PEAK = (-1.8, 0.0)  # decimal logarithm
HISS, HISSING = (-5.5, -3.0), 0.5  # decimal logarithm, and share of clips
TEMPO, TEMPO_CHANGED = (0.85, 1.7), 0.4  # range, and share of clips
AT_8_KHZ, ONCE_AT_8_KHZ = 0.35, 0.15  # share of clips


def resample(waveform: Waveform, rate: int, *, speed: float = 1.0) -> Waveform:
    """At another rate; ``speed`` over 1 also makes it faster and higher, as a tape would."""
    if waveform.sampling_rate == rate and speed == 1.0:
        return waveform
    samples = soxr.resample(waveform.samples, waveform.sampling_rate * speed, rate, quality="MQ")
    return Waveform(samples.astype(np.float32), rate)


def join(clips: list[Samples], rate: int, random: np.random.Generator) -> Samples:
    """Clips one after another: 40 ms of overlap to 300 ms of pause between them, all equally loud."""
    parts: list[Samples] = []
    length = 0
    level = random.uniform(0.05, 0.2)
    for clip in clips:
        gap = random.uniform(-0.04, 0.3) if random.random() < 0.6 else random.uniform(-0.04, 0.04)
        length = max(0, length + int(gap * rate)) if parts else 0
        loudness = float(np.sqrt(np.mean(clip**2))) + 1e-6
        part = np.zeros(length + len(clip), np.float32)
        part[length:] = clip * (level / loudness * random.uniform(0.8, 1.25))
        length = len(part)
        parts.append(part)
    joined = np.zeros(length, np.float32)
    for part in parts:
        joined[: len(part)] += part
    return joined


def noise(random: np.random.Generator, rate: int) -> Samples:
    """A third of a second to three seconds without a word: noise from white to brown, from faint to loud."""
    length = int(rate * random.uniform(0.3, 3.0))
    spectrum = np.fft.rfft(random.normal(size=length))
    spectrum *= np.arange(1, len(spectrum) + 1) ** -random.uniform(0.0, 1.0)
    samples = np.fft.irfft(spectrum, length)
    return (samples / samples.std() * 10 ** random.uniform(-4.0, -1.3)).astype(np.float32)


def vary(waveform: Waveform, random: np.random.Generator, *, at_8_khz: float = AT_8_KHZ) -> Waveform:
    """One random version of a clip: pace, pitch, cut, room, silence around, loudness, and one of the model's rates.

    Args:
        at_8_khz: how likely the lower one is.
    """
    rate = min(waveform.sampling_rate, SAMPLING_RATE)
    samples = resample(waveform, rate, speed=random.uniform(*SPEED)).samples
    if random.random() < TRIMMED:
        samples = _trim(samples, float(np.exp(random.uniform(*np.log(QUIET)))))
    if random.random() < REVERBERATED:
        samples = _reverberate(samples, rate, random)
    before, after = (int(rate * random.uniform(*SILENCE_SECONDS) * random.integers(0, 2)) for _ in range(2))
    samples = np.pad(samples, (before, after))
    # Recordings differ by 40 dB and more in level and in their noise floor; the front end has no gain control.
    peak = float(np.abs(samples).max()) + 1e-6
    samples = samples * (10 ** random.uniform(*PEAK) / peak)
    if random.random() < HISSING:
        samples = samples + random.normal(0, 10 ** random.uniform(*HISS), len(samples))
    return _through_a_band(Waveform(samples.astype(np.float32), rate), random, at_8_khz)


def _trim(samples: Samples, quiet: float) -> Samples:
    """Without what is below a share of the peak at both ends, as single words are often cut."""
    loud = np.flatnonzero(np.abs(samples) > quiet * np.abs(samples).max())
    # A click may be all that is loud: then there is nothing to cut away.
    return samples[loud[0] : loud[-1] + 1] if len(loud) and loud[-1] - loud[0] > len(samples) / 8 else samples


def _through_a_band(waveform: Waveform, random: np.random.Generator, at_8_khz: float) -> Waveform:
    draw = random.random()
    if draw < at_8_khz:
        return resample(waveform, LOW_SAMPLING_RATE)
    if draw < at_8_khz + ONCE_AT_8_KHZ:
        return resample(resample(waveform, LOW_SAMPLING_RATE), SAMPLING_RATE)
    return waveform


def _reverberate(samples: Samples, rate: int, random: np.random.Generator) -> Samples:
    """A room as exponentially decaying noise (Polack's model), behind the direct sound."""
    length = int(rate * random.uniform(*REVERBERATION_SECONDS))
    decay = np.exp(-6.9 * np.arange(length) / length)  # -60 dB at the end
    response = random.normal(size=length) * decay
    response *= random.uniform(0.1, 0.7) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    return fftconvolve(samples, response)[: len(samples) + length // 4].astype(np.float32)


def change_tempo(features: Tensor, random: np.random.Generator) -> Tensor:
    """Log-mels [frames, mels] spoken faster or slower at the same pitch, in a share of the calls."""
    if random.random() >= TEMPO_CHANGED:
        return features
    return _stretched(features, 1 / random.uniform(*TEMPO))


# Log-mels of one clip, each time they are used.
STRETCH = 0.45  # natural logarithm of how much longer or shorter, at full strength


def change_pace(features: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Log-mels [frames, mels] spoken faster or slower at the same pitch."""
    return _stretched(features.float(), math.exp(float(_uniform(generator, -STRETCH, STRETCH, 1)) * strength))


def _stretched(features: Tensor, factor: float) -> Tensor:
    """Log-mels [frames, mels] with so many times as many frames."""
    frames = max(1, round(len(features) * factor))
    return F.interpolate(features.T[None], size=frames, mode="linear", align_corners=True)[0].T


# Batches of log-mels (natural logarithm, so a factor e is 1), at full strength.
CHANNEL = 0.6  # standard deviation of a smooth filter
GAIN = 1.5
ROLL_OFF, ROLLED_OFF = 7.0, 0.5  # how far a dull microphone lowers the upper bands, and share of clips
SUPPRESSION, SUPPRESSED = 10.0, 0.5  # how far noise suppression lowers a fricative, and share of clips
BURST = 15  # frames of a burst at most
EXPANSION, EXPANDED = 1.6, 0.5  # by how much an expander widens the range between quiet and loud, and share of clips
WARP = 0.1  # how much longer or shorter the voice tract
NOISE_BELOW_PEAK = (3.0, 9.0)
NOISY = 0.5  # share of clips
BAND_MASK, NUM_BAND_MASKS = 12, 2  # bands at most
TIME_MASK, NUM_TIME_MASKS = 0.08, 2  # share of the frames at most


def vary_batch(
    features: Tensor, generator: torch.Generator, *, strength: float = 1.0, time_mask: float = TIME_MASK
) -> Tensor:
    """Random versions of log-mels [clips, frames, mels], each clip its own; the frames stay in number.

    Args:
        strength: 0 changes nothing, 1 is the full range.
        time_mask: the share of the frames that one mask hides at most, at full strength.
    """
    floored = features <= 0  # the empty upper half of 8 kHz audio stays empty
    features = _warp(features, WARP * strength, generator)
    features = features + strength * (_channel(features, generator) - _roll_off(features, generator))
    features = _expand(features, EXPANDED * strength, generator)
    features = (features - _suppression(features, SUPPRESSED * strength, generator)).clamp(min=0)
    features = _add_noise(features, NOISY * strength, generator)
    features = features.clamp(min=0).masked_fill(floored, 0.0)
    return _mask(features, strength, time_mask, generator)


def _uniform(generator: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    return torch.rand(*size, generator=generator) * (high - low) + low


def _warp(features: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Stretch the mel axis about its low end (vocal tract length perturbation, Jaitly & Hinton 2013)."""
    clips, frames, mels = features.shape
    source = torch.arange(mels) * _uniform(generator, 1 - most, 1 + most, clips, 1)
    source = source.clamp(max=mels - 1)
    low = source.floor().long()
    high = (low + 1).clamp(max=mels - 1)
    share = (source - low).unsqueeze(1)
    at_low, at_high = (features.gather(2, index.unsqueeze(1).expand(-1, frames, -1)) for index in (low, high))
    return at_low * (1 - share) + at_high * share


def _channel(features: Tensor, generator: torch.Generator) -> Tensor:
    """A gain and a smooth filter for each clip: a random curve through six points of the mel axis."""
    clips, _, mels = features.shape
    points = CHANNEL * torch.randn(clips, 1, 6, generator=generator)
    curve = F.interpolate(points, size=mels, mode="linear", align_corners=True)
    return curve + _uniform(generator, -GAIN, GAIN, clips, 1, 1)


def _roll_off(features: Tensor, generator: torch.Generator) -> Tensor:
    """How much is lost above a random band: nothing below it, all of the loss a sixth of the mel axis above it."""
    clips, _, mels = features.shape
    start = mels * _uniform(generator, 0.3, 0.8, clips, 1, 1)
    loss = _uniform(generator, 0.0, ROLL_OFF, clips, 1, 1)
    spared = torch.rand(clips, 1, 1, generator=generator) >= ROLLED_OFF
    return loss.masked_fill(spared, 0.0) * ((torch.arange(mels) - start) * 6 / mels).clamp(0, 1)


def _expand(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Lower what is quiet beside the peak, as a gate or expander does, in a share of the clips."""
    clips = len(features)
    factor = _uniform(generator, 1.0, EXPANSION, clips, 1, 1)
    spared = torch.rand(clips, 1, 1, generator=generator) >= share
    peak = features.amax(dim=(1, 2), keepdim=True)
    return peak - (peak - features) * factor.masked_fill(spared, 1.0)


def _suppression(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """How much noise suppression takes of each moment, in a share of the clips: of fricatives, which sound like noise.

    That is where the lowest bands are far below their loudest and the middle ones (about 1.1 to 3.7 kHz, so at 8 kHz
    too) are not. It takes what lasts, as spectral subtraction does, and leaves bursts: "six" without "s", but "eight"
    with "t".
    """
    clips, _, mels = features.shape
    low, middle = features[:, :, : mels // 4].mean(2), features[:, :, 3 * mels // 8 : 3 * mels // 4].mean(2)
    unvoiced = torch.sigmoid(2.0 * (low.amax(1, keepdim=True) - low - 4))
    audible = torch.sigmoid(2.0 * (middle - middle.amax(1, keepdim=True) + 7))
    noise_like = (unvoiced * audible).unsqueeze(1)
    # A morphological opening: the least within a burst's length, then the most of these.
    half = BURST // 2
    least = -F.max_pool1d(-noise_like, BURST, stride=1, padding=half)
    lasting = F.max_pool1d(least, BURST, stride=1, padding=half)
    loss = _uniform(generator, 0.0, SUPPRESSION, clips, 1, 1)
    spared = torch.rand(clips, 1, 1, generator=generator) >= share
    return loss.masked_fill(spared, 0.0) * lasting.transpose(1, 2)


def _add_noise(features: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Stationary noise of a smooth random spectrum, some way below each clip's peak, in a share of the clips."""
    clips, frames, mels = features.shape
    points = torch.randn(clips, 1, 5, generator=generator)
    spectrum = F.interpolate(points, size=mels, mode="linear", align_corners=True)
    peak = features.amax(dim=(1, 2), keepdim=True)
    level = peak - _uniform(generator, *NOISE_BELOW_PEAK, clips, 1, 1) + spectrum
    level = level + 0.4 * torch.randn(clips, frames, mels, generator=generator)
    quiet = torch.rand(clips, 1, 1, generator=generator) >= share
    return torch.where(quiet, features, torch.logaddexp(features, level))


def _mask(features: Tensor, strength: float, time_mask: float, generator: torch.Generator) -> Tensor:
    """Fill random bands and moments with each clip's mean."""
    clips, frames, mels = features.shape
    hidden = torch.zeros(clips, frames, mels, dtype=torch.bool)
    masks = ((mels, BAND_MASK, NUM_BAND_MASKS, 1), (frames, time_mask * frames, NUM_TIME_MASKS, 2))
    for size, width, count, axis in masks:
        for _ in range(count):
            start = _uniform(generator, 0, size, clips, 1)
            end = start + strength * _uniform(generator, 0, width, clips, 1)
            place = torch.arange(size)
            inside = (place >= start) & (place < end)
            hidden |= inside.unsqueeze(axis)
    return torch.where(hidden, features.mean(dim=(1, 2), keepdim=True), features)

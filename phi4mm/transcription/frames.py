"""Audio to frames of 32 ms, each with its level and the probability that it is speech."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from phi4mm.inputs.audio import Waveform, resampler
from phi4mm.inputs.high_pass import HighPass
from phi4mm.transcription.detector import FRAME, SAMPLING_RATE, SpeechDetector

SILENCE = 1e-10  # power that counts as none
# The detector is given the audio as it is until an offset, a hum or a rumble is found: for half a second what lies
# below 100 Hz has at least this power all the time, and in all so many times that of the rest. Of 4967 recordings (AN4,
# FSDD, Mini LibriSpeech) one is such: it has an offset of 0.011.
LOW_FRAMES = 16
LOW_POWER = 1e-4  # -40 dB of full scale: an offset of 0.01
LOW_TIMES = 4.0


@dataclass(frozen=True)
class Frame:
    """32 ms of audio. At the end it is less, or none.

    Attributes:
        samples: float32 [n].
        sampling_rate: in Hz.
        probability: that it is speech.
        level: mean power above 100 Hz, in dB of full scale.
    """

    samples: np.ndarray
    sampling_rate: int
    probability: float
    level: float


def frames(waveforms: Iterable[Waveform], detector: SpeechDetector | None) -> Iterator[Frame]:
    """Frames of consecutive parts of one audio, at 16 or 8 kHz; without a detector everything counts as speech.

    An offset or a hum is kept from the detector, which misses quiet speech with them, and from the levels.
    """
    framer: _Framer | None = None
    for waveform in waveforms:
        framer = framer or _Framer(waveform.sampling_rate, detector)
        yield from framer.push(waveform.samples)
    if framer is not None:
        yield from framer.finish()


class _Framer:
    """Frames of one stream as soon as the probability of each is known."""

    def __init__(self, sampling_rate: int, detector: SpeechDetector | None) -> None:
        self._rate = sampling_rate
        self._size = FRAME * sampling_rate // SAMPLING_RATE
        self._detector = detector
        self._upsampler = None if sampling_rate == SAMPLING_RATE else resampler(sampling_rate, SAMPLING_RATE)
        self._high_pass = HighPass(sampling_rate)
        self._samples = np.zeros(0, np.float32)  # not yet a frame
        self._filtered = np.zeros(0, np.float32)  # the same
        self._low = deque[float](maxlen=LOW_FRAMES)  # power of the last frames below 100 Hz
        self._rest = deque[float](maxlen=LOW_FRAMES)  # and above
        self._filters = False  # whether the detector is given what is filtered, from here on
        self._held: list[tuple[np.ndarray, np.ndarray]] = []  # the first frames, until there are enough to judge
        self._waiting = deque[tuple[np.ndarray, float]]()  # samples and level of the frames without a probability

    def push(self, samples: np.ndarray) -> Iterator[Frame]:
        """Take the stream's next samples (float32 [n])."""
        self._samples = np.concatenate((self._samples, samples))
        self._filtered = np.concatenate((self._filtered, self._high_pass.push(samples).astype(np.float32)))
        yield from self._take(len(self._samples) // self._size, self._size)

    def finish(self) -> Iterator[Frame]:
        """The frames that are left."""
        yield from self._take(min(len(self._samples), 1), len(self._samples))
        yield from self._detect([samples for samples, _ in self._held])
        if self._detector is not None:
            if self._upsampler is not None:
                rest = self._upsampler.resample_chunk(np.zeros(0, np.float32), last=True)
                yield from self._with(self._detector.push(rest))
            yield from self._with(self._detector.finish())
        yield from self._with([1.0] * len(self._waiting))

    def _take(self, count: int, size: int) -> Iterator[Frame]:
        """The next ``count`` frames of this size: measured, and given to the detector."""
        if not count:
            return
        (samples, self._samples), (filtered, self._filtered) = (
            (of[: count * size].reshape(count, size), of[count * size :]) for of in (self._samples, self._filtered)
        )
        power, rest = (np.mean(np.square(of, dtype=np.float64), axis=1).tolist() for of in (samples, filtered))
        if not self._low:  # where a stream begins within a hum, the filter rings, which the detector takes for a voice
            filtered[0] *= np.clip(np.linspace(-1.0, 1.0, size, dtype=np.float32), 0.0, 1.0)
        chosen: list[np.ndarray] = []
        for index in range(count):
            self._waiting.append((samples[index], 10 * math.log10(rest[index] + SILENCE)))
            self._low.append(power[index] - rest[index])
            self._rest.append(rest[index])
            self._held.append((samples[index], filtered[index]))
            if len(self._low) == LOW_FRAMES:
                self._filters = self._filters or self._is_low()
                chosen += [held[self._filters] for held in self._held]
                self._held.clear()
        yield from self._detect(chosen)

    def _is_low(self) -> bool:
        return min(self._low) >= LOW_POWER and sum(self._low) >= LOW_TIMES * sum(self._rest)

    def _detect(self, parts: list[np.ndarray]) -> Iterator[Frame]:
        """Give the detector the next part of what it is to judge."""
        if self._detector is None:
            yield from self._with([1.0] * len(self._waiting))
        elif parts:
            joined = np.concatenate(parts)
            joined = joined if self._upsampler is None else self._upsampler.resample_chunk(joined)
            yield from self._with(self._detector.push(joined))

    def _with(self, probabilities: Iterable[float]) -> Iterator[Frame]:
        for probability in probabilities:
            samples, level = self._waiting.popleft() if self._waiting else (np.zeros(0, np.float32), -100.0)
            yield Frame(samples, self._rate, float(probability), level)

"""Live audio to turns: where speech starts and stops, as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phi4mm.transcription.detector import FRAME, FRAME_SECONDS, SAMPLING_RATE, SpeechDetector

HYSTERESIS = 0.15  # speech goes on down to this much below the threshold at which it starts
START_FRAMES = 3  # of speech, one after another, that start a turn: about 0.1 s
_LEAST_SHARE = 0.5  # of a turn that is cut because it is too long


@dataclass(frozen=True)
class TurnOptions:
    """When a turn starts and stops.

    Attributes:
        threshold: the probability of speech at which a turn starts.
        prefix_seconds: what it keeps of the audio before its speech.
        silence_seconds: without speech that stop it.
        max_seconds: that it lasts at most; then it is cut where speech is least probable, and the next one starts.
    """

    threshold: float = 0.5
    prefix_seconds: float = 0.3
    silence_seconds: float = 0.5
    max_seconds: float = 30.0


@dataclass(frozen=True)
class Started:
    """A turn starts, in seconds from the beginning of the audio."""

    seconds: float


@dataclass(frozen=True)
class Stopped:
    """A turn stops, in seconds from the beginning of the audio; its samples are float32 [n] at 16 kHz."""

    seconds: float
    samples: np.ndarray


class TurnBuffer:
    """Holds live audio until it is committed: at the end of each turn, or when the client asks.

    Args:
        options: of turns; ``None``: the client alone commits.
    """

    def __init__(self, options: TurnOptions | None) -> None:
        self._options = options
        self._detector = SpeechDetector()
        self._buffer = bytearray()  # float32 samples from number ``_first`` on
        self._first = 0
        self._num_frames = 0
        self._run = 0  # frames of speech, one after another, before a turn
        self._last = 0  # number of the last frame of speech in the turn
        self._probabilities: list[float] | None = None  # of the turn's frames; None: there is no turn
        self._turn_frame = 0  # number of the first of them

    @property
    def options(self) -> TurnOptions | None:
        """How turns are found; what is in the buffer stays when it is changed, but a turn begins anew."""
        return self._options

    @options.setter
    def options(self, options: TurnOptions | None) -> None:
        self._options = options
        self._probabilities, self._run = None, 0

    @property
    def seconds(self) -> float:
        """How much is held."""
        return len(self._buffer) / 4 / SAMPLING_RATE

    @property
    def in_turn(self) -> bool:
        return self._probabilities is not None

    @property
    def samples(self) -> np.ndarray:
        """A copy of what is held, float32 [n]."""
        return np.frombuffer(bytes(self._buffer), np.float32)

    def push(self, samples: np.ndarray) -> Iterator[Started | Stopped]:
        """Take the next samples (float32 [n], 16 kHz); what they start and stop."""
        self._buffer += samples.astype(np.float32, copy=False).tobytes()
        for probability in self._detector.push(samples):
            self._num_frames += 1
            if self._options is not None:
                yield from self._frame(float(probability), self._options)
        if self._options is not None and not self.in_turn:
            kept = round(self._options.prefix_seconds * SAMPLING_RATE) + self._run * FRAME
            self._drop(self._num_frames * FRAME - kept)

    def commit(self) -> Stopped:
        """All that is held, as the client asks for it; it ends the turn."""
        end = self._first + len(self._buffer) // 4
        return self._take(end)

    def clear(self) -> None:
        """Drop all that is held."""
        self._drop(self._first + len(self._buffer) // 4)
        self._probabilities, self._run = None, 0

    def _frame(self, probability: float, options: TurnOptions) -> Iterator[Started | Stopped]:
        index = self._num_frames - 1
        if self._probabilities is None:
            self._run = self._run + 1 if probability >= options.threshold else 0
            if self._run >= START_FRAMES:
                onset = (index + 1 - START_FRAMES) * FRAME
                yield self._start(max(onset - round(options.prefix_seconds * SAMPLING_RATE), self._first), index)
            return
        self._probabilities.append(probability)
        if probability >= options.threshold - HYSTERESIS:
            self._last = index
        if (index - self._last) * FRAME_SECONDS >= options.silence_seconds:
            yield self._take((index + 1) * FRAME)
        elif (index + 1) * FRAME - self._first >= options.max_seconds * SAMPLING_RATE:
            least = int(len(self._probabilities) * _LEAST_SHARE)
            quietest = least + int(np.argmin(self._probabilities[least:]))
            place = (self._turn_frame + quietest) * FRAME
            yield self._take(place)
            yield self._start(place, index)

    def _start(self, place: int, index: int) -> Started:
        self._drop(place)
        self._probabilities, self._turn_frame, self._last, self._run = [], index + 1, index, 0
        return Started(self._first / SAMPLING_RATE)

    def _take(self, end: int) -> Stopped:
        """What is held up to sample number ``end``."""
        samples = np.frombuffer(bytes(self._buffer[: 4 * (end - self._first)]), np.float32)
        self._drop(end)
        self._probabilities, self._run = None, 0
        return Stopped(end / SAMPLING_RATE, samples)

    def _drop(self, place: int) -> None:
        """Let go what is before sample number ``place``."""
        if place > self._first:
            del self._buffer[: 4 * (place - self._first)]
            self._first = place


class Agreement:
    """The part of a text that two decodings of a growing window agree on: what may be shown before its end.

    Attributes:
        shown: what was given so far.
    """

    def __init__(self) -> None:
        self.shown = ""
        self._before = ""

    def push(self, text: str) -> str:
        """Take the next decoding; what may be shown now in addition."""
        size = _agreed(self._before, text)
        self._before = text
        return self._show(text[:size])

    def finish(self, text: str) -> str:
        """Take the last one; empty where it does not go on from what was shown."""
        return self._show(text)

    def _show(self, text: str) -> str:
        if not text.startswith(self.shown):
            return ""
        more = text[len(self.shown) :]
        self.shown = text
        return more


def _agreed(one: str, other: str) -> int:
    """Length of what two texts begin with, without a word of which more may come."""
    size = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    while size and not (_is_whole(other[size - 1]) or other[size : size + 1].isspace()):
        size -= 1
    return size


def _is_whole(character: str) -> bool:
    """Whether nothing can be added to it: of scripts without spaces each character is a word."""
    return ord(character) >= 0x2E80

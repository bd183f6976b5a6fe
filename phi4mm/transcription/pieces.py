"""Long audio to pieces that the model can take: cut at silences, never longer than asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from phi4mm.transcription.detector import FRAME_SECONDS
from phi4mm.transcription.frames import Frame

PAD = 0.4  # seconds of what is around it that a piece keeps on either side
BREATH_PAUSE = 4  # frames, about 0.13 s: after so long, a burst is no part of the word that follows
HYSTERESIS = 0.15  # speech goes on down to this much below the threshold at which it begins
MARGIN = 0.5  # seconds that a forced cut leaves to the next piece at least
# The detector takes the first third of a second of steady tones for speech. Of 209 recorded digits each had three
# frames or more of sure speech and varied by 7.8 dB or more; tones, chords and white noise varied by 1.6 dB at most,
# and claps, applause and clicks had no frame of sure speech. (Low beeps pass for speech.)
FEWEST_FRAMES = 3  # of speech in a piece
STEADY = 3.0  # dB between the quietest and the loudest frame of what cannot be speech
# Of a short file a single frame is enough if the level varies as a word's does.
SHORT = 3.0  # seconds
SHORT_RANGE = 6.0  # dB


@dataclass(frozen=True)
class Piece:
    """A part of the audio that is transcribed as one.

    Attributes:
        samples: float32 [n], the speech and some of what is around it.
        sampling_rate: in Hz.
        offset: where the samples begin, in seconds from the audio's start.
        start, end: where the speech begins and ends, likewise.
        speech: the mean probability of speech from start to end.
    """

    samples: np.ndarray
    sampling_rate: int
    offset: float
    start: float
    end: float
    speech: float

    def later(self, seconds: float) -> Piece:
        """The piece in an audio that begins so much earlier."""
        return replace(self, offset=self.offset + seconds, start=self.start + seconds, end=self.end + seconds)


class Cutter:
    """Takes one audio's frames and gives each piece as soon as its end is known.

    A pause of ``min_silence`` seconds ends a piece. One that would grow beyond ``max_piece`` seconds is cut in its
    second half: in the middle of the longest pause there, or where it is quietest if there is none. What is steady, or
    has fewer than three frames of speech, is no piece; but a file of up to three seconds that has none is one as a
    whole if a single frame is speech and its level varies as that of a word does: short words on their own are easily
    missed.

    Args:
        max_piece: the longest piece, in seconds.
        min_silence: the pause that ends a piece, in seconds.
        threshold: the probability at which speech begins.
        judge: whether there may be what is not speech.
    """

    def __init__(
        self, max_piece: float, *, min_silence: float = 1.0, threshold: float = 0.5, judge: bool = True
    ) -> None:
        self._longest = max_piece / FRAME_SECONDS
        self._ending = max(round(min_silence / FRAME_SECONDS), 1)
        self._pad = min(round(PAD / FRAME_SECONDS), self._ending // 2)
        self._threshold = threshold
        self._low = threshold - HYSTERESIS
        self._judge = judge
        self._num_frames = 0
        self._kept: list[Frame] = []  # from frame number ``_first`` on
        self._first = 0
        self._onset: int | None = None  # number of the first frame of speech in the piece
        self._last = 0  # number of its last so far
        self._short: list[Frame] | None = []  # all frames, while there are few and there was no piece

    def push(self, frame: Frame) -> Piece | None:
        """Take the next frame; the piece that it ends, if it ends one."""
        index = self._num_frames
        self._num_frames += 1
        self._kept.append(frame)
        if frame.probability >= (self._threshold if self._onset is None else self._low):
            self._onset = index if self._onset is None else self._onset
            self._last = index
        if self._short is not None:
            self._short = [*self._short, frame] if index * FRAME_SECONDS <= SHORT + 1 else None
        if self._onset is None:
            self._drop(len(self._kept) - self._pad)
        elif index - self._last >= self._ending:
            return self._end()
        elif len(self._kept) > self._longest:
            return self._divide()
        return None

    def finish(self) -> Piece | None:
        """The last piece, if one is left."""
        if self._onset is not None and (piece := self._end()):
            return piece
        short = [frame for frame in self._short or () if len(frame.samples)]
        duration = sum(len(frame.samples) for frame in short) / short[0].sampling_rate if short else 0.0
        has_speech = any(frame.probability >= self._threshold for frame in self._short or ())
        if 0 < duration <= SHORT and has_speech and _level_range(short) >= SHORT_RANGE:
            return _piece(short, 0, 0, len(short) - 1)
        return None

    def _end(self) -> Piece | None:
        """The piece up to its last speech and a little more; what follows is kept for the next."""
        assert self._onset is not None
        piece = self._judged(self._last + 1 + self._pad - self._first, self._last)
        self._drop(len(self._kept) - self._pad)
        self._onset = None
        return piece

    def _divide(self) -> Piece | None:
        """The piece up to the best place in its second half; the rest goes on as the next."""
        assert self._onset is not None
        size = _best_cut(self._kept, self._low, least=self._onset - self._first + 1)
        speech = [number for number, frame in enumerate(self._kept, self._first) if frame.probability >= self._low]
        before = [number for number in speech if self._onset <= number < self._first + size]
        after = [number for number in speech if number >= self._first + size]
        piece = self._judged(size, before[-1])
        self._drop(size)
        self._onset = after[0] if after else None
        return piece

    def _judged(self, size: int, last: int) -> Piece | None:
        """The first ``size`` frames as a piece, if what they have up to frame number ``last`` may be speech."""
        assert self._onset is not None
        speech = self._kept[self._onset - self._first : last + 1 - self._first]
        num_sure = sum(frame.probability >= self._threshold for frame in speech)
        if self._judge and (num_sure < FEWEST_FRAMES or _level_range(speech) < STEADY):
            return None
        self._short = None
        start = self._onset + _num_before_speech(speech, self._threshold, self._low)
        return _piece(self._kept[:size], self._first, start, last)

    def _drop(self, count: int) -> None:
        count = max(count, 0)
        self._kept, self._first = self._kept[count:], self._first + count


def cut(
    parts: Iterable[Frame],
    *,
    max_piece: float,
    min_silence: float = 1.0,
    threshold: float = 0.5,
    judge: bool = True,
) -> Iterator[Piece]:
    """The pieces of one audio, in order; arguments as ``Cutter``."""
    cutter = Cutter(max_piece, min_silence=min_silence, threshold=threshold, judge=judge)
    for frame in parts:
        if piece := cutter.push(frame):
            yield piece
    if piece := cutter.finish():
        yield piece


def _level_range(parts: list[Frame]) -> float:
    """dB between the quietest and the loudest of the frames that are at least half full."""
    full = max((len(frame.samples) for frame in parts), default=0)
    levels = [frame.level for frame in parts if 2 * len(frame.samples) >= full > 0]
    return max(levels) - min(levels) if levels else 0.0


def _num_before_speech(parts: list[Frame], threshold: float, low: float) -> int:
    """How many frames are before the first speech that lasts: not a breath, with fewer than three frames of speech and
    a pause after it. 0 if none lasts."""
    start = 0
    while True:
        pause = next(
            (at for at in range(start, len(parts)) if all(f.probability < low for f in parts[at : at + BREATH_PAUSE])),
            len(parts),
        )
        if sum(frame.probability >= threshold for frame in parts[start:pause]) >= FEWEST_FRAMES:
            return start
        start = next((at for at in range(pause, len(parts)) if parts[at].probability >= threshold), len(parts))
        if start == len(parts):
            return 0


def _best_cut(kept: list[Frame], low: float, *, least: int) -> int:
    """How many frames to cut off: in the second half, in its longest pause or else where it is quietest."""
    begin = max(len(kept) // 2, least)
    end = max(len(kept) - round(MARGIN / FRAME_SECONDS), begin + 1)
    best, pause = (0, 0), 0  # length and middle of the longest pause
    for place in range(begin, end):
        pause = pause + 1 if kept[place].probability < low else 0
        best = max(best, (pause, place - (pause - 1) // 2))
    if best[0] > 1:
        return best[1]
    levels = [frame.level for frame in kept[begin - 1 : end + 1]]
    quietest = min(range(end - begin), key=lambda place: sum(levels[place : place + 3]))
    return begin + quietest


def _piece(parts: list[Frame], first: int, onset: int, last: int) -> Piece:
    """Frames number ``first`` and following, with speech from frame ``onset`` to ``last``."""
    samples = np.concatenate([frame.samples for frame in parts])
    rate = parts[0].sampling_rate
    offset = first * FRAME_SECONDS
    ending = offset + len(samples) / rate
    return Piece(
        samples=samples,
        sampling_rate=rate,
        offset=offset,
        start=min(onset * FRAME_SECONDS, ending),
        end=min((last + 1) * FRAME_SECONDS, ending),
        speech=float(np.mean([frame.probability for frame in parts[onset - first : last + 1 - first]])),
    )

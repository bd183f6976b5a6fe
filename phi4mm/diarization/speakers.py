"""Speakers of an audio, and which of them says each part of its transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from phi4mm.transcript import Segment

# Cosine of two voices' embeddings at which they are one speaker's. Of 22 clips of 4 to 10 s by 8 speakers of
# LibriSpeech, those of one speaker had 0.76 or more, those of two at most 0.66 but for one pair with 0.78.
LEAST_SIMILARITY = 0.7


@dataclass(frozen=True)
class SpeakerTurn:
    """One speaker, from ``start`` to ``end`` in seconds."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Diarization:
    """Who speaks when.

    Attributes:
        turns: in order; speakers are A, B, ... by when they begin, unless they are named.
        voices: each speaker's embedding, float32 [n].
    """

    turns: tuple[SpeakerTurn, ...] = ()
    voices: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, turns: Sequence[SpeakerTurn], voices: Mapping[str, np.ndarray]) -> Diarization:
        """With speakers called A, B, ..."""
        ordered = sorted(turns, key=lambda turn: turn.start)
        names = {name: label(number) for number, name in enumerate(dict.fromkeys(turn.speaker for turn in ordered))}
        return cls(tuple(ordered), voices)._renamed(names)

    def named(self, known: Mapping[str, np.ndarray]) -> Diarization:
        """With the names of those speakers whose voice is known; each name is given once, to the most similar."""
        pairs = sorted(
            (
                (similarity(voice, one), speaker, name)
                for speaker, voice in self.voices.items()
                for name, one in known.items()
            ),
            reverse=True,
        )
        names: dict[str, str] = {}
        for cosine, speaker, name in pairs:
            if cosine >= LEAST_SIMILARITY and speaker not in names and name not in names.values():
                names[speaker] = name
        return self._renamed(names)

    def main_voice(self) -> np.ndarray | None:
        """The embedding of who speaks longest; ``None`` where nobody speaks."""
        seconds: dict[str, float] = {}
        for turn in self.turns:
            seconds[turn.speaker] = seconds.get(turn.speaker, 0.0) + turn.end - turn.start
        return self.voices[max(seconds, key=lambda name: seconds[name])] if seconds else None

    def attributed(self, segment: Segment) -> list[Segment]:
        """A segment divided by speakers: at its words if they are timed, else as a whole. Where no voice was found at
        all everything is A's."""
        words = segment.words or ()
        runs = [
            (speaker, [word for _, word in run])
            for speaker, run in groupby(
                ((self._speaker(word.start, word.end), word) for word in words), lambda pair: pair[0]
            )
        ]
        if len(runs) < 2:
            speaker = runs[0][0] if runs else self._speaker(segment.start, segment.end)
            return [replace(segment, speaker=speaker)]
        return [
            replace(
                segment,
                start=segment.start if number == 0 else run[0].start,
                end=segment.end if number == len(runs) - 1 else run[-1].end,
                text=" ".join(word.text for word in run),
                words=tuple(run),
                speaker=speaker,
            )
            for number, (speaker, run) in enumerate(runs)
        ]

    def _speaker(self, start: float, end: float) -> str:
        """Who speaks most from ``start`` to ``end``, or else nearest to it."""
        if not self.turns:
            return label(0)
        overlap: dict[str, float] = {}
        for turn in self.turns:
            shared = min(end, turn.end) - max(start, turn.start)
            if shared > 0:
                overlap[turn.speaker] = overlap.get(turn.speaker, 0.0) + shared
        if overlap:
            return max(overlap, key=lambda name: overlap[name])
        return min(self.turns, key=lambda turn: max(turn.start - end, start - turn.end)).speaker

    def _renamed(self, names: Mapping[str, str]) -> Diarization:
        return Diarization(
            tuple(replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in self.turns),
            {names.get(name, name): voice for name, voice in self.voices.items()},
        )


def label(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of two embeddings."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-12))

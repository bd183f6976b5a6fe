"""What a transcription gives: words, segments and the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word, and where it is said in seconds from the audio's start: estimates, see docs/asr.md."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A part of an audio with its words.

    Attributes:
        start, end: where it is said, in seconds from the audio's start.
        text: what is said.
        avg_logprob: mean natural log-probability of its tokens; like all below, ``None`` where not measured. Rounding
            in it depends on the batch, so equality passes it over.
        compression_ratio: how many times shorter zlib makes the text; over about 2.4 it repeats itself.
        no_speech_prob: 1 minus the speech detector's mean probability of speech.
        temperature: at which it was decoded; over 0 where lower ones failed.
        words: when each word is said (``word_timestamps=True``).
        speaker: who says it, where speakers were looked for.
    """

    start: float
    end: float
    text: str
    avg_logprob: float | None = field(default=None, compare=False)
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None
    words: tuple[Word, ...] | None = None
    speaker: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Segment:
        """From the form that it has in ``Transcript.to_dict``."""
        words = values.get("words")
        return cls(**{**values, "words": None if words is None else tuple(Word(**word) for word in words)})


@dataclass(frozen=True)
class Transcript:
    """What was said: the text, its segments, and the audio's duration in seconds."""

    text: str
    segments: tuple[Segment, ...]
    duration: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, segments: Sequence[Segment], duration: float) -> Transcript:
        """The transcript that these segments make up."""
        return cls(" ".join(segment.text for segment in segments), tuple(segments), duration)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transcript:
        """The inverse of ``to_dict``; keys that a transcript does not have are passed over."""
        segments = tuple(Segment.from_dict(segment) for segment in values["segments"])
        return cls(values["text"], segments, values["duration"])

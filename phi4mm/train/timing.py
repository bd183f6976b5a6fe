"""How exact word time stamps are: on single words joined at known times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from phi4mm.api import Phi4MM
from phi4mm.inputs.audio import SAMPLING_RATE, load_audio
from phi4mm.train.augment import resample
from phi4mm.train.data import Clip

PAUSES = (0.05, 0.15, 0.3, 0.8)  # seconds between words
BEFORE = 0.3  # seconds of silence before the first
MOST_WORDS = 6
AUDIBLE = 0.03  # of the peak: where a word begins and ends

Timed = tuple[str, float, float]  # a word, its start and its end in seconds


def joined_words(clips: Sequence[Clip], count: int, seed: str) -> Iterator[tuple[np.ndarray, list[Timed]]]:
    """Clips of one word each, one after another with pauses between them.

    Yields:
        float32 samples [n] at 16 kHz, and what is said when.
    """
    random = Random(seed)
    for _ in range(count):
        parts, timed = [np.zeros(round(BEFORE * SAMPLING_RATE), np.float32)], list[Timed]()
        for clip in random.choices(clips, k=random.randint(2, MOST_WORDS)):
            samples = _trimmed(resample(load_audio(clip.path), SAMPLING_RATE).samples)
            place = sum(map(len, parts))
            timed.append((clip.words[0], place / SAMPLING_RATE, (place + len(samples)) / SAMPLING_RATE))
            parts += [samples, np.zeros(round(random.choice(PAUSES) * SAMPLING_RATE), np.float32)]
        faint = np.random.default_rng(len(timed)).normal(0, 1e-4, sum(map(len, parts)))
        yield (np.concatenate(parts) + faint).astype(np.float32), timed


def word_time_errors(model: Phi4MM, clips: Sequence[Clip], *, count: int = 20) -> tuple[list[float], list[float]]:
    """Absolute errors, in seconds, of the starts and of the ends of the words that were heard rightly.

    Args:
        clips: of one speaker; those of one word are joined.
        count: of joined clips.
    """
    single = [clip for clip in clips if len(clip.words) == 1]
    starts, ends = list[float](), list[float]()
    for samples, timed in joined_words(single, count, "joined words"):
        transcript = model.transcribe((samples, SAMPLING_RATE), word_timestamps=True)
        found = [word for segment in transcript.segments for word in segment.words or ()]
        if [word.text for word in found] == [text for text, _, _ in timed]:
            starts += [abs(word.start - start) for word, (_, start, _) in zip(found, timed, strict=True)]
            ends += [abs(word.end - end) for word, (_, _, end) in zip(found, timed, strict=True)]
    return starts, ends


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """Without what is inaudible at both ends, as loud as any other."""
    audible = np.flatnonzero(np.abs(samples) > AUDIBLE * np.abs(samples).max())
    samples = samples[audible[0] : audible[-1] + 1]
    return 0.1 * samples / np.sqrt(np.mean(np.square(samples)))

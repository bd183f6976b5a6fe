"""A corpus of tones, and a recogniser of tones: each clip's pitch is its word."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import soundfile

from eval_asr.backends import Recogniser

RATE = 16000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


def write_corpus(folder: Path, num_clips: int = 12, *, durations: bool = True) -> Path:
    """Clips of 0.1 to 0.3 seconds, each with a word of ``WORDS``, and their manifest ``folder/test.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lines = []
    for index in range(num_clips):
        word = int(generator.integers(len(WORDS)))
        seconds = float(generator.integers(10, 30)) / 100
        soundfile.write(folder / f"clip{index}.wav", tone(word, seconds), RATE)
        values = {"audio_filepath": f"clip{index}.wav", "text": f"{WORDS[word]} é {index}", "duration": seconds}
        if not durations:
            del values["duration"]
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    manifest = folder / "test.jsonl"
    manifest.write_text("".join(lines), "utf-8")
    return manifest


def tone(word: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 100 * (word + 1) * np.arange(int(seconds * RATE)) / RATE)


class ToneRecogniser(Recogniser):
    """Returns the word of a clip's pitch, and in what company the clip came, so that a changed batch shows.

    Attributes:
        seconds: of rest before each batch.
        fails_on: a word that it cannot stand: it raises.
        batches: how many clips each batch had that it was handed.
        closed: whether it was closed.
    """

    name = "tones"
    sampling_rate = RATE

    def __init__(self, *, seconds: float = 0.0, fails_on: str | None = None) -> None:
        self.seconds = seconds
        self.fails_on = fails_on
        self.batches: list[int] = []
        self.closed = False

    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
        time.sleep(self.seconds)
        self.batches.append(len(clips))
        texts = [self._word(clip) for clip in clips]
        if self.fails_on in texts:
            raise RuntimeError(f"cannot stand {self.fails_on}")
        company = f"{len(clips)} {max(len(clip) for clip in clips)}"
        return [f"{text} {company}" for text in texts]

    def close(self) -> None:
        self.closed = True

    def _word(self, clip: np.ndarray) -> str:
        pitch = np.abs(np.fft.rfft(clip)).argmax() * RATE / len(clip)
        return WORDS[round(pitch / 100) - 1]

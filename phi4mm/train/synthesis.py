"""The prepared speech of every synthetic voice: one folder of 16 kHz FLAC for each voice, with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import soundfile
import soxr
from tqdm import tqdm

from phi4mm.inputs.audio import SAMPLING_RATE
from phi4mm.train.files import write_rows
from phi4mm.train.voices import Voice
from phi4mm.train.words import script

# How much each voice of an engine says (times every digit, sequences, numbers): much where it costs little, and
# less of each where an engine has many voices.
SCRIPTS = {
    "flite": (8, 80, 20),
    "espeak": (1, 5, 2),
    "hibari": (3, 60, 10),
    "piper": (8, 60, 20),
    "kokoro": (1, 8, 3),
}
MANIFEST = "manifest.jsonl"


def synthesise(voices: Sequence[Voice], folder: Path) -> None:
    """Let every voice speak its script into ``folder/NAME``; voices whose manifest exists are skipped."""
    for voice in tqdm(voices, desc="voices"):
        target = folder / voice.name
        if not (target / MANIFEST).exists():
            _record(voice, target)


def _record(voice: Voice, target: Path) -> None:
    random = Random(voice.name)
    singles, sequences, numbers = SCRIPTS[voice.name.split("-")[0]]
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, words in enumerate(script(random, singles=singles, sequences=sequences, numbers=numbers)):
        # Pauses between the words now and then, as when a number is dictated.
        text = (", " if random.random() < 0.2 else " ").join(words)
        samples, rate = voice.speak(text, pace=random.uniform(0.75, 1.4), pitch=random.uniform(0.8, 1.2))
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
        soundfile.write(target / f"{index}.flac", samples.clip(-1, 1), SAMPLING_RATE)
        row = {"audio_filepath": f"{index}.flac", "duration": round(len(samples) / SAMPLING_RATE, 3)}
        rows.append(row | {"text": " ".join(words), "speaker": voice.name})
    write_rows(target / MANIFEST, rows)

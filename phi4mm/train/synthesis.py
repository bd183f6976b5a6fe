"""The prepared speech of every synthetic voice: for each kind of script a folder, in it one of 16 kHz FLAC for each
voice, with its manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import soundfile
import soxr
from tqdm import tqdm

from phi4mm.inputs.audio import SAMPLING_RATE
from phi4mm.train.files import write_rows
from phi4mm.train.voices import Voice
from phi4mm.train.words import as_written, numbers_script, sentence

MANIFEST = "manifest.jsonl"

# How much each voice of an engine says: much where it costs little, and less of each where an engine has many voices.
NUMBERS = {  # times every digit, sequences, numbers
    "flite": (8, 80, 20),
    "espeak": (1, 5, 2),
    "hibari": (3, 60, 10),
    "piper": (8, 60, 20),
    "kokoro": (1, 8, 3),
}
SENTENCES = {  # sentences, questions
    "flite": (120, 120),
    "espeak": (8, 8),
    "hibari": (80, 80),
    "piper": (60, 80),
    "kokoro": (5, 6),
}

Utterance = tuple[list[str], str]  # the words, and how they are written for a voice
Script = Callable[[str, Random], list[Utterance]]  # of a voice's engine


def numbers(engine: str, random: Random) -> list[Utterance]:
    """Digits, sequences and numbers, with pauses now and then, as when a number is dictated."""
    singles, sequences, others = NUMBERS[engine]
    spoken = numbers_script(random, singles=singles, sequences=sequences, numbers=others)
    return [(words, (", " if random.random() < 0.2 else " ").join(words)) for words in spoken]


def sentences(questions: Sequence[str]) -> Script:
    """Sentences in AN4's manner, and some of ``questions`` (each with its question mark)."""

    def script(engine: str, random: Random) -> list[Utterance]:
        num_sentences, num_questions = SENTENCES[engine]
        spoken = [sentence(random) for _ in range(num_sentences)]
        asked = random.sample(questions, min(num_questions, len(questions)))
        return [
            *((words, as_written(words)) for words in spoken),
            *((text.rstrip("?").split(), text) for text in asked),
        ]

    return script


def synthesise(voices: Sequence[Voice], script: Script, folder: Path) -> None:
    """Let every voice speak its script into ``folder/NAME``; voices whose manifest exists are skipped."""
    for voice in tqdm(voices, desc=f"voices: {folder.name}", disable=None):
        target = folder / voice.name
        if not (target / MANIFEST).exists():
            _record(voice, script, target)


def _record(voice: Voice, script: Script, target: Path) -> None:
    random = Random(f"{target.parent.name} {voice.name}")
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (words, text) in enumerate(script(voice.name.split("-")[0], random)):
        samples, rate = voice.speak(text, pace=random.uniform(0.75, 1.4), pitch=random.uniform(0.8, 1.2))
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
        soundfile.write(target / f"{index}.flac", samples.clip(-1, 1), SAMPLING_RATE)
        row = {"audio_filepath": f"{index}.flac", "duration": round(len(samples) / SAMPLING_RATE, 3)}
        rows.append(row | {"text": " ".join(words), "speaker": voice.name})
    write_rows(target / MANIFEST, rows)

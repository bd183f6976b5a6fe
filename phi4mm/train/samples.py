"""Stage: the sample clips, spoken by flite's voices, and the sample pictures, with their texts and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import soxr

from phi4mm.train.drawing import PLAIN_FONT, PRINTED, draw_shape, draw_shapes, draw_text
from phi4mm.train.files import write_rows
from phi4mm.train.pictures import Picture
from phi4mm.train.voices import FliteVoice


@dataclass(frozen=True)
class Sample:
    """What a voice says, and the format of the file."""

    name: str
    voice: str
    text: str
    rate: int = 16000
    channels: int = 1


# rms is held out of training; the others are not.
SAMPLES = (
    Sample("digit.flac", "rms", "seven"),
    Sample("three_digits.flac", "rms", "three five nine"),
    Sample("telephone.flac", "rms", "five five two eight oh one four"),
    Sample("eight_digits.flac", "slt", "two four six eight one three five seven"),
    Sample("number.flac", "awb", "sixty three"),
    Sample("telephone_8khz.flac", "rms", "nine zero six one", rate=8000),
    Sample("stereo_44khz.wav", "rms", "eight three three one", rate=44100, channels=2),
    Sample("compressed.mp3", "slt", "six one zero two", rate=44100),
)


@dataclass(frozen=True)
class PictureSample:
    """A drawn picture; ``question`` is asked in text, or by the clip ``asked`` alone."""

    name: str
    draw: Callable[[Random], Picture]
    seed: int
    question: str
    asked: str | None = None


PICTURE_SAMPLES = (
    PictureSample("shape.png", draw_shape, 1, "what color is the shape?"),
    PictureSample("shape.png", draw_shape, 1, "what shape is in the image?"),
    PictureSample("shape.png", draw_shape, 1, "what color is the shape?", asked="question.flac"),
    PictureSample("shapes.png", draw_shapes, 9, "how many shapes are there?"),
    PictureSample("printed.png", lambda random: draw_text(random, PRINTED, [PLAIN_FONT]), 11, "what is written?"),
)


def write_picture_samples(folder: Path) -> list[dict[str, str]]:
    """Every picture and spoken question, and ``pictures.jsonl``, whose rows are returned."""
    rows = []
    for sample in PICTURE_SAMPLES:
        picture = sample.draw(Random(sample.seed))
        picture.image.save(folder / sample.name)
        answer = next(known.answer for known in picture.questions if known.text == sample.question)
        row = {"image_filepath": sample.name, "question": sample.question, "answer": answer}
        if sample.asked:
            samples, rate = FliteVoice("rms").speak(sample.question)
            soundfile.write(folder / sample.asked, samples.clip(-1, 1), rate)
            row["audio_filepath"] = sample.asked
        rows.append(row)
    write_rows(folder / "pictures.jsonl", rows)
    return rows


def write_samples(folder: Path) -> None:
    """Every clip, and ``manifest.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    for sample in SAMPLES:
        samples, rate = FliteVoice(sample.voice).speak(sample.text)
        samples = soxr.resample(samples, rate, sample.rate).clip(-1, 1)
        soundfile.write(folder / sample.name, np.stack([samples] * sample.channels, axis=1), sample.rate)
    rows = [
        {"audio_filepath": sample.name, "text": sample.text, "speaker": f"flite-{sample.voice}"} for sample in SAMPLES
    ]
    write_rows(folder / "manifest.jsonl", rows)

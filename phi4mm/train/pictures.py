"""Pictures with their questions: easy-VQA's, of one shape each, and which of them training never sees."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from phi4mm.errors import ImageError, Phi4MMError

SHAPE_QUESTION, COUNT, READ = "shape question", "count", "read"  # tasks
HELD_OUT_EVERY = 10  # every tenth picture, in numerical order


@dataclass(frozen=True)
class Question:
    """A question about a picture; ``answer`` is in lower-case words, ``task`` is one of the three above."""

    text: str
    answer: str
    task: str


@dataclass(frozen=True)
class Thing:
    """What a picture shows somewhere: its words ("red circle", "seven"), and its centre in pixels from upper left."""

    words: str
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """An RGB image, what may be asked about it, and where what it shows is (nothing where that is not known)."""

    image: Image.Image
    questions: tuple[Question, ...]
    things: tuple[Thing, ...] = ()


@dataclass(frozen=True)
class StoredPicture:
    """A picture that is still in its file."""

    path: Path
    questions: tuple[Question, ...]

    def open(self) -> Picture:
        """Read the file; an :class:`ImageError` where it cannot be read."""
        try:
            with Image.open(self.path) as image:
                return Picture(image.convert("RGB"), self.questions)
        except (OSError, UnidentifiedImageError) as error:
            raise ImageError(
                f"{self.path}: not a readable picture ({error}); expected a PNG; fetch it again"
            ) from error


@dataclass(frozen=True)
class PictureSplit:
    """Pictures to train on, and pictures kept out of training."""

    train: tuple[StoredPicture, ...]
    held_out: tuple[StoredPicture, ...]


def easy_vqa(folder: Path) -> PictureSplit:
    """easy-VQA's pictures, split by picture: no picture's questions are on both sides.

    Args:
        folder: holds ``images/N.png`` and ``questions.json`` (rows of question, answer and picture number N).

    Raises:
        Phi4MMError: there is no such folder.
    """
    file = folder / "questions.json"
    if not file.is_file():
        raise Phi4MMError(
            f"{folder}: no questions.json; expected easy-VQA's training folder (images/N.png, questions.json); "
            "set PHI4MM_DATA to the folder that holds easy_vqa/"
        )
    questions: dict[int, list[Question]] = defaultdict(list)
    for text, answer, number in json.loads(file.read_text(encoding="utf-8")):
        questions[number].append(Question(text, answer, SHAPE_QUESTION))
    pictures = [StoredPicture(folder / "images" / f"{n}.png", tuple(asked)) for n, asked in sorted(questions.items())]
    held_out = tuple(pictures[::HELD_OUT_EVERY])
    train = tuple(picture for at, picture in enumerate(pictures) if at % HELD_OUT_EVERY)
    return PictureSplit(train, held_out)

"""The pictures of the recipe: what is drawn is what is answered, and easy-VQA's split keeps pictures apart."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from phi4mm.errors import Phi4MMError
from phi4mm.inputs.image import prepare_image
from phi4mm.model.config import VisionConfig
from phi4mm.train import drawing
from phi4mm.train.bank import THINGS, UNKNOWN, StoredImage, places
from phi4mm.train.drawing import COLOUR_RANGES, draw_shape, draw_shapes, draw_text, found_fonts
from phi4mm.train.picture_words import what_to_say
from phi4mm.train.pictures import HELD_OUT_EVERY, READ, Picture, Question, Thing, easy_vqa
from phi4mm.train.text import COLOURS, SHAPES
from phi4mm.train.words import DIGITS

ndimage = pytest.importorskip("scipy.ndimage")

WORDS = ("stop", "seven", "garden")


def seen(picture: Picture) -> list[tuple[str, str]]:
    """Colour and shape of what stands out from a light background, told from the pixels alone."""
    pixels = np.asarray(picture.image, np.float32)
    labels, count = ndimage.label(pixels.min(axis=2) < 175)
    ground = np.median(pixels[pixels.min(axis=2) >= 230], axis=0)
    found = []
    for index, place in enumerate(ndimage.find_objects(labels), 1):
        ys, xs = (slice(max(0, part.start - 1), part.stop + 1) for part in place)
        mine = (labels[ys, xs] == index) | (labels[ys, xs] == 0)
        distance = np.abs(pixels[ys, xs] - ground).sum(axis=2) * mine
        cover = distance / distance.max()
        y, x = np.unravel_index(distance.argmax(), distance.shape)
        nearest = min(
            COLOURS, key=lambda name: min(np.abs(pixels[ys, xs][y, x] - c).sum() for c in COLOUR_RANGES[name])
        )
        full = cover.sum() / (cover.max(axis=0).sum() * cover.max(axis=1).sum())
        found.append((nearest, "rectangle" if full > 0.9 else "circle" if full > 0.65 else "triangle"))
    assert len(found) == count
    return found


def test_counted_shapes_are_there() -> None:
    random = Random(1)
    for _ in range(25):
        picture = draw_shapes(random)
        things = seen(picture)
        for question in picture.questions:
            if count := re.fullmatch(r"how many (?:(\w+) )?(\w+)s are there\?", question.text):
                colour, shape = count.groups()
                true = sum(colour in (None, c) and shape in ("shape", s) for c, s in things)
                assert question.answer == DIGITS[true], question
            else:
                asked = re.fullmatch(r"is there a (\w+) (\w+)\?", question.text)
                assert asked is not None
                assert question.answer == ("yes" if asked.groups() in things else "no"), question


def test_shapes_are_where_they_are_said_to_be() -> None:
    random = Random(8)
    for _ in range(25):
        picture = draw_shapes(random)
        assert sorted(thing.words for thing in picture.things) == sorted(" ".join(thing) for thing in seen(picture))
        for thing in picture.things:
            inside = np.asarray(picture.image.getpixel((int(thing.x), int(thing.y))), float)
            off = {name: min(np.abs(inside - known).sum() for known in COLOUR_RANGES[name]) for name in COLOURS}
            assert min(off, key=off.__getitem__) == thing.words.split()[0]


def test_each_crop_knows_what_is_in_it() -> None:
    config = VisionConfig(image_size=64, patch_size=8)
    image = Image.new("RGB", (96, 96))  # shown as 2 x 2 tiles of 48 of its pixels
    picture = Picture(image, (), (Thing("red circle", 10.0, 20.0), Thing("seven", 60.0, 90.0)))
    red, seven = (1 + THINGS.index(words) for words in ("red circle", "seven"))
    found = places(picture, prepare_image(image, config), config)
    assert {(*place, int(found[tuple(place)])) for place in found.nonzero().tolist()} == {
        (0, 1, 0, red), (0, 7, 5, seven), (1, 3, 1, red), (4, 7, 2, seven)
    }  # fmt: skip
    unknown = places(Picture(image, ()), prepare_image(image, config), config)
    assert set(unknown.flatten().tolist()) == {UNKNOWN}


def test_tokens_say_shapes_in_their_place_and_texts_row_by_row() -> None:
    things = torch.zeros(2, 8, 8, dtype=torch.int8)
    things[:, 5, 3] = 1 + THINGS.index("red circle")
    image = StoredImage(torch.zeros(2, 3, 64, 64), torch.ones(2, 8, 8, dtype=torch.bool), things, (1, 1), 0)
    number = {"red": 1, "circle": 2, "four": 3}
    said = what_to_say(image, [], number)
    assert said[2, 1].tolist() == [0, 0.5, 0.5, 0]
    assert said[..., 0].sum() == 15
    said = what_to_say(image, [Question("what is the number?", "four four", READ)], number)
    assert said[:2, :, 3].tolist() == [[1] * 4] * 2
    assert said[2:, :, 0].tolist() == [[1] * 4] * 2


def test_answers_about_one_shape_are_true() -> None:
    random = Random(2)
    answers = []
    for _ in range(25):
        picture = draw_shape(random)
        ((colour, shape),) = seen(picture)
        for question in picture.questions:
            if question.text.startswith("what"):
                assert question.answer == (colour if "color" in question.text else shape)
            else:
                named = [word for word in re.findall(r"\w+", question.text) if word in (*COLOURS, *SHAPES)]
                negated = bool(re.search(r"\b(not|no)\b", question.text))
                assert question.answer == ("yes" if (named[0] in (colour, shape)) != negated else "no"), question
                answers.append(question.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_printed_text_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    draw = drawing._print
    monkeypatch.setattr(drawing, "_print", lambda text, *rest: printed.append(text) or draw(text, *rest))
    random = Random(3)
    for _ in range(25):
        picture = draw_text(random, WORDS)
        names = [DIGITS[int(one)] if one.isdigit() else one for one in printed[-1].lower()]
        assert [thing.words for thing in picture.things] == names
        across = [thing.x for thing in picture.things]
        assert across == sorted(across)
        answer, text = picture.questions[0].answer, printed[-1]
        if text.isdigit():
            assert answer == " ".join(DIGITS[int(digit)] for digit in text)
        else:
            assert answer == (text.lower() if text.lower() in WORDS else " ".join(text.lower()))
        assert {question.answer for question in picture.questions} == {answer}


@pytest.mark.parametrize("font", found_fonts())
def test_text_stands_out_inside_its_margin(font: str) -> None:
    random = Random(4)
    picture = draw_text(random, WORDS, [font])
    pixels = np.asarray(picture.image.convert("L"), np.int16)
    ink = np.abs(pixels - pixels[0, 0]) > drawing.CONTRAST / 2
    assert 0.005 < ink.mean() < 0.5
    edge = drawing.MARGIN // drawing.FINE
    assert ink[edge:-edge, edge:-edge].sum() == ink.sum()
    rows, columns = ink.nonzero()
    reach = picture.image.width / 16
    for thing in picture.things:  # the middle of a character is among its ink
        near = np.abs(columns - thing.x) < reach
        assert rows[near].min() - 3 <= thing.y <= rows[near].max() + 3


def test_a_seed_is_a_picture() -> None:
    def drawn(seed: int) -> list[tuple[bytes, object]]:
        random = Random(seed)
        pictures = [draw_shape(random), draw_shapes(random), draw_text(random, WORDS)]
        return [(picture.image.tobytes(), picture.questions) for picture in pictures]

    assert drawn(5) == drawn(5)
    assert all(one != other for one, other in zip(drawn(5), drawn(6), strict=True))


def test_easy_vqa_keeps_pictures_apart(data_folder: Path) -> None:
    folder = data_folder / "easy_vqa" / "train"
    split = easy_vqa(folder)
    train, held_out = ({picture.path for picture in part} for part in (split.train, split.held_out))
    assert not train & held_out
    assert len(train | held_out) == len(train) + len(held_out) == len(list((folder / "images").iterdir()))
    assert all(int(path.stem) % HELD_OUT_EVERY == 0 for path in held_out)
    assert split.train[0].open().image.size == (64, 64)


def test_drawn_shapes_are_asked_about_as_in_easy_vqa(data_folder: Path) -> None:
    def wordings(pictures: list[tuple[str, ...]]) -> set[str]:
        named = rf"\b(?:(?P<colour>{'|'.join(COLOURS)})|(?P<shape>{'|'.join(SHAPES)}))\b"
        kind = lambda match: f"<{match.lastgroup}>"  # noqa: E731
        return {re.sub(named, kind, text) for texts in pictures for text in texts}

    real = easy_vqa(data_folder / "easy_vqa" / "train").train[:500]
    random = Random(8)
    drawn = [draw_shape(random) for _ in range(20)]
    asked = [wordings([tuple(q.text for q in picture.questions) for picture in part]) for part in (real, drawn)]
    assert asked[0] == asked[1]


def test_a_missing_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(Phi4MMError, match=r"no questions\.json; expected easy-VQA"):
        easy_vqa(tmp_path)

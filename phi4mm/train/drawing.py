"""Pictures that the recipe draws itself, with questions and their answers: one shape in easy-VQA's look, several shapes
to be counted, and a printed word, number or row of letters to be read.

All randomness comes from the generator that is handed in. Everything is drawn at twice its size and reduced with a
bilinear filter, which is how easy-VQA's pictures were made, as their edges tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from random import Random
from string import ascii_lowercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phi4mm.train.pictures import COUNT, READ, SHAPE_QUESTION, Picture, Question, Thing
from phi4mm.train.text import COLOURS, SHAPES
from phi4mm.train.words import COMMANDS, DIGITS, MONTHS, NUMBER_WORDS

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom, the last two included

FINE = 2  # pixels drawn for each pixel of the picture, along an edge
SIZE = 64  # pixels, an edge of easy-VQA's pictures

# easy-VQA's looks, measured on its pictures; lengths in fine pixels.
EASY_COLOURS: dict[str, RGB] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
}
BACKGROUND = (230, 255)  # of each channel, independently
SHAPE_SIZE = (16, 64)
TRIANGLE_HEIGHT = math.sqrt(3) / 2  # of its base: equilateral, point upwards
_ANGLES = np.radians(np.arange(360))
_DEGREES = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # [360, 2], the unit circle

_WHAT_COLOUR = (
    "what color is the shape?",
    "what is the color of the shape?",
    "what color is the {shape}?",
    "what is the color of the {shape}?",
)
_WHAT_SHAPE = (
    "what is the {colour} shape?",
    "what shape does the image contain?",
    "what shape is in the image?",
    "what shape is present?",
)
_IS_THERE = (
    "does the image contain a {thing}?",
    "is a {thing} present?",
    "is there a {thing} in the image?",
    "is there a {thing}?",
)
_IS_THERE_NOT = (
    "does the image not contain a {thing}?",
    "is no {thing} present?",
    "is there not a {thing} in the image?",
    "is there not a {thing}?",
)


@dataclass(frozen=True)
class _Shape:
    colour: str
    shape: str
    box: Box

    @property
    def thing(self) -> Thing:
        left, top, right, bottom = self.box
        return Thing(f"{self.colour} {self.shape}", (left + right) / 2 / FINE, (top + bottom) / 2 / FINE)


# One shape.


def draw_shape(random: Random) -> Picture:
    """One shape as in easy-VQA, 64x64, with every wording of its questions; yes and no are equally likely."""
    colour, shape = random.choice(COLOURS), random.choice(SHAPES)
    edge = FINE * SIZE
    width, height = _shape_size(shape, random, *SHAPE_SIZE)
    left, top = random.randint(0, edge - width), random.randint(0, edge - height)
    drawn = _Shape(colour, shape, (left, top, left + width, top + height))
    image = _render([drawn], [EASY_COLOURS[colour]], (edge, edge), _background(random))
    return Picture(image, _easy_questions(colour, shape, random), (drawn.thing,))


def _background(random: Random) -> RGB:
    return random.randint(*BACKGROUND), random.randint(*BACKGROUND), random.randint(*BACKGROUND)


def _shape_size(shape: str, random: Random, least: int, most: int) -> tuple[int, int]:
    """Width and height, less one."""
    width = random.randint(least, most)
    if shape == "rectangle":
        return width, random.randint(least, most)
    return width, math.ceil(width * TRIANGLE_HEIGHT) if shape == "triangle" else width


def _render(shapes: Sequence[_Shape], colours: Sequence[RGB], size: tuple[int, int], ground: RGB) -> Image.Image:
    """Draw on a canvas of ``size`` fine pixels, and reduce it."""
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    for drawn, colour in zip(shapes, colours, strict=True):
        left, top, right, bottom = drawn.box
        if drawn.shape == "circle":
            # easy-VQA's circles are not today's ``ellipse``: polygons whose corners are rounded away from the centre.
            away = np.copysign(np.floor(np.abs(_DEGREES) * (right - left) / 2 + 0.5), _DEGREES)
            centre = np.array([(left + right) // 2, (top + bottom) // 2])
            draw.polygon((away + centre).flatten().tolist(), fill=colour)
        elif drawn.shape == "rectangle":
            draw.rectangle(drawn.box, fill=colour)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    return image.resize((size[0] // FINE, size[1] // FINE), Image.Resampling.BILINEAR)


def _easy_questions(colour: str, shape: str, random: Random) -> tuple[Question, ...]:
    questions = [(text.format(shape=shape), colour) for text in _WHAT_COLOUR]
    questions += [(text.format(colour=colour), shape) for text in _WHAT_SHAPE]
    for texts, when_there, when_not in ((_IS_THERE, "yes", "no"), (_IS_THERE_NOT, "no", "yes")):
        for text in texts:
            for true, others, noun in ((colour, COLOURS, "{} shape"), (shape, SHAPES, "{}")):
                asked = true if random.random() < 0.5 else _other(others, true, random)
                questions.append((text.format(thing=noun.format(asked)), when_there if asked == true else when_not))
    return tuple(Question(text, answer, SHAPE_QUESTION) for text, answer in questions)


def _other(choices: Sequence[str], one: str, random: Random) -> str:
    return random.choice([choice for choice in choices if choice != one])


# Several shapes.

# What other people call by these names; a colour lies between two of its row, give or take ``TINT``.
COLOUR_RANGES: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (215, 20, 30)),
    "green": ((0, 255, 0), (0, 128, 0), (30, 170, 50)),
    "blue": ((0, 0, 255), (30, 60, 220)),
    "yellow": ((255, 255, 0), (250, 220, 20)),
    "teal": ((0, 128, 128), (0, 150, 150)),
    "brown": ((165, 42, 42), (139, 69, 19)),
    "gray": ((128, 128, 128), (150, 150, 150)),
    "black": ((0, 0, 0), (20, 20, 20)),
}
TINT = 8
AS_EASY_VQA = 0.5  # share of pictures in easy-VQA's own colours
MOST_SHAPES = 6
MANY_SIZES = ((64, 64), (64, 64), (96, 64), (96, 96), (128, 64), (128, 96), (128, 128))
GAP = 4  # fine pixels between two shapes


def draw_shapes(random: Random) -> Picture:
    """One to six shapes that do not touch, to be counted, and asked for by colour and shape.

    Of one of ``MANY_SIZES``; each number of shapes is equally likely, and so are yes and no.
    """
    width, height = random.choice(MANY_SIZES)
    boxes = _places(random.randint(1, MOST_SHAPES), (FINE * width, FINE * height), random)
    kept = random.sample(COLOURS, random.randint(1, 4))  # few, so that a colour comes more than once
    shapes = [_Shape(random.choice(kept), shape, box) for shape, box in boxes]
    easy = random.random() < AS_EASY_VQA
    colours = [EASY_COLOURS[drawn.colour] if easy else _tinted(drawn.colour, random) for drawn in shapes]
    ground = (255, 255, 255) if random.random() < 0.2 else _background(random)
    image = _render(shapes, colours, (FINE * width, FINE * height), ground)
    return Picture(image, _count_questions(shapes, random), tuple(drawn.thing for drawn in shapes))


def _places(count: int, size: tuple[int, int], random: Random) -> list[tuple[str, Box]]:
    """Shapes with their boxes, apart from each other; the sizes give way where the canvas is full."""
    least, most = SHAPE_SIZE[0], SHAPE_SIZE[1] * min(size) // (FINE * SIZE)
    placed: list[tuple[str, Box]] = []
    tries = 0
    while len(placed) < count:
        tries += 1
        if tries % 40 == 0:
            placed, most = [], max(least, most * 3 // 4)
        shape = random.choice(SHAPES)
        width, height = _shape_size(shape, random, least, most)
        left, top = random.randrange(size[0] - width), random.randrange(size[1] - height)
        box = (left, top, left + width, top + height)
        if not any(_touch(box, other) for _, other in placed):
            placed.append((shape, box))
    return placed


def _touch(one: Box, other: Box) -> bool:
    across = one[0] - GAP <= other[2] and other[0] - GAP <= one[2]
    return across and one[1] - GAP <= other[3] and other[1] - GAP <= one[3]


def _tinted(colour: str, random: Random) -> RGB:
    first, second = random.sample(COLOUR_RANGES[colour], 2)
    share = random.random()
    red, green, blue = (
        min(255, max(0, round(a + (b - a) * share) + random.randint(-TINT, TINT)))
        for a, b in zip(first, second, strict=True)
    )
    return red, green, blue


def _count_questions(shapes: Sequence[_Shape], random: Random) -> tuple[Question, ...]:
    seen = [drawn.colour for drawn in shapes]
    absent = [colour for colour in COLOURS if colour not in seen]
    counted = [("shapes", len(shapes))]
    counted += [(f"{shape}s", sum(drawn.shape == shape for drawn in shapes)) for shape in SHAPES]
    asked = [*dict.fromkeys(random.choices(seen, k=2)), random.choice(absent)]
    counted += [(f"{colour} shapes", seen.count(colour)) for colour in asked]
    questions = [Question(f"how many {things} are there?", DIGITS[count], COUNT) for things, count in counted]

    # Half of what is not there is made of a colour and a shape that are.
    there = {(drawn.colour, drawn.shape): None for drawn in shapes}
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]
    mixed = [(colour, shape) for colour in dict.fromkeys(seen) for shape in SHAPES if (colour, shape) in every]
    missing = random.choice(mixed if mixed and random.random() < 0.5 else every)
    for (colour, shape), answer in ((random.choice(list(there)), "yes"), (missing, "no")):
        questions.append(Question(f"is there a {colour} {shape}?", answer, SHAPE_QUESTION))
    return tuple(questions)


# Printed text.

PRINTED = (*COLOURS, *SHAPES, *NUMBER_WORDS, *MONTHS, *COMMANDS)  # the words that the recipe prints

TEXT_SIZES = ((64, 64), (96, 64), (128, 64), (128, 64), (160, 64), (192, 64), (256, 64), (128, 128))
SHORT = 4  # as many characters are legible on less than 128 pixels
TILT = 8.0  # degrees to either side
MARGIN = 7  # fine pixels
FILL = (0.55, 1.0)  # share of the room that the text takes
CONTRAST = 100  # least difference in luma, of 255
_REFERENCE = 40  # font size in fine pixels at which text is measured
PLAIN_FONT = "Aileron"  # comes with Pillow
# Of packages that bring fonts along; the expressions leave out symbols and scripts other than Latin.
_FONT_PACKAGES = (("rendercv_fonts", r"(?!Font ?Awesome|NotoSans[A-Z]{2})"), ("matplotlib", r"DejaVu(?!.*Display)"))
_SYSTEM_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansCondensed", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "LiberationMono-Bold",
    "LiberationMono-Regular", "LiberationSans-Bold", "LiberationSans-Italic", "LiberationSans-Regular",
    "LiberationSansNarrow-Regular", "LiberationSerif-Bold", "LiberationSerif-Italic", "LiberationSerif-Regular",
)  # fmt: skip


def draw_text(random: Random, words: Sequence[str], fonts: Sequence[str] = ()) -> Picture:
    """A word, a number of one to four digits, or two to four capital letters, slightly tilted; of one of
    ``TEXT_SIZES``.

    The answer is the word in lower case ("stop"), the digits ("four zero seven"), or the letters ("a b c"). Words may
    be printed in capitals, so letters that happen to spell one of ``words`` are not drawn as letters.

    Args:
        words: to draw from, in lower case; up to some ten letters stay legible.
        fonts: names from :func:`found_fonts`; by default all of them.
    """
    kind = random.choice(("word", "number", "letters"))
    if kind == "word":
        word = random.choice(words)
        printed, answer = random.choice((word, word, word.capitalize(), word.upper())), word
    elif kind == "number":
        digits = [random.randrange(10) for _ in range(random.randint(1, 4))]
        printed, answer = "".join(map(str, digits)), " ".join(DIGITS[digit] for digit in digits)
    else:
        spelled = _letters(random)
        while spelled in words:
            spelled = _letters(random)
        printed, answer = spelled.upper(), " ".join(spelled)
    verb = "are" if kind == "letters" else "is"
    asked = ("what is written?", "what does it say?", f"what {verb} the {kind}?")
    image, centres = _print(printed, random.choice(fonts or found_fonts()), random)
    names = [DIGITS[int(character)] if character.isdigit() else character for character in printed.lower()]
    things = tuple(Thing(name, x, y) for name, (x, y) in zip(names, centres, strict=True))
    return Picture(image, tuple(Question(text, answer, READ) for text in asked), things)


def _letters(random: Random) -> str:
    return "".join(random.choices(ascii_lowercase, k=random.randint(2, 4)))


def _print(text: str, font: str, random: Random) -> tuple[Image.Image, list[tuple[float, float]]]:
    """A picture of a text, and the centre of each of its characters in pixels."""
    size = random.choice([size for size in TEXT_SIZES if len(text) <= SHORT or size[0] >= 128])
    room = [FINE * edge - 2 * MARGIN for edge in size]
    angle = random.uniform(-TILT, TILT)
    sine, cosine = abs(math.sin(math.radians(angle))), math.cos(math.radians(angle))
    left, top, right, bottom = _font(font, _REFERENCE).getbbox(text)
    width, height = right - left, bottom - top
    largest = min(room[0] / (width * cosine + height * sine), room[1] / (width * sine + height * cosine))
    drawn = _font(font, 2 * max(4, int(_REFERENCE * largest * random.uniform(*FILL) / 2)))

    left, top, right, bottom = (round(edge) for edge in drawn.getbbox(text))
    tile = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(tile).text((-left, -top), text, fill=255, font=drawn)
    ends = [drawn.getlength(text[:index]) - left for index in range(len(text) + 1)]
    from_middle = [(start + end - tile.width) / 2 for start, end in pairwise(ends)]
    tile = tile.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    mask = Image.new("L", (FINE * size[0], FINE * size[1]))
    spare = [max(0, edge - taken) for edge, taken in zip(room, tile.size, strict=True)]
    at = MARGIN + random.randint(0, spare[0]), MARGIN + random.randint(0, spare[1])
    mask.paste(tile, at)
    turned = math.radians(angle)
    centres = [
        (
            (at[0] + tile.width / 2 + x * math.cos(turned)) / FINE,
            (at[1] + tile.height / 2 - x * math.sin(turned)) / FINE,
        )
        for x in from_middle
    ]

    ink, ground = _ink_and_ground(random)
    image = Image.new("RGB", size, ground)
    image.paste(ink, (0, 0, *size), mask.resize(size, Image.Resampling.BILINEAR))
    return image, centres


def _ink_and_ground(random: Random) -> tuple[RGB, RGB]:
    while True:
        ground = _background(random) if random.random() < 0.5 else _any_colour(random)
        ink = EASY_COLOURS[random.choice(COLOURS)] if random.random() < 0.5 else _any_colour(random)
        if abs(_luma(ink) - _luma(ground)) >= CONTRAST:
            return ink, ground


def _any_colour(random: Random) -> RGB:
    return random.randrange(256), random.randrange(256), random.randrange(256)


def _luma(colour: RGB) -> float:
    """ITU-R BT.601."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def found_fonts() -> tuple[str, ...]:
    """Names of the fonts on this machine that text can be drawn in, sorted; there is always one."""
    return tuple(sorted(_font_files()))


@cache
def _font_files() -> dict[str, str]:
    """The fonts' files by name; Pillow's own has none."""
    files = {PLAIN_FONT: ""}
    for name in _SYSTEM_FONTS:
        try:
            files[name] = str(ImageFont.truetype(name).path)  # looks through the system's folders of fonts
        except OSError:
            continue  # not installed
    for package, wanted in _FONT_PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted([*Path(folder).rglob("*.ttf"), *Path(folder).rglob("*.otf")]):
                if re.match(wanted, path.stem):
                    files.setdefault(path.stem, str(path))
    return files


@lru_cache(maxsize=1024)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    file = _font_files()[name]
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)

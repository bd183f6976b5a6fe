"""Stage: pictures prepared ahead of training, with their questions, in one file.

A file holds the crops of all its pictures one after another (float16), their patch masks, what has its centre in each
patch, each picture's grid, and the questions, answers and tasks as JSON lines beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor
from tqdm import tqdm

from phi4mm.inputs.image import prepare_image
from phi4mm.model.batch import ImageBatch
from phi4mm.model.config import VisionConfig
from phi4mm.model.media import PreparedImage
from phi4mm.train.files import read_rows, read_tensors, write_rows, write_tensors
from phi4mm.train.pictures import Picture, Question
from phi4mm.train.text import COLOURS, SHAPES
from phi4mm.train.words import DIGITS

# What a picture may show; class 0 is nothing.
THINGS = (*(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES), *DIGITS, *ascii_lowercase)
UNKNOWN = -1  # what there is in the patches of a picture whose things are not known


@dataclass(frozen=True)
class StoredImage:
    """Crops [crops, channels, size, size], masks and classes of ``THINGS`` [crops, patches, patches], tile rows and
    columns, tokens it takes."""

    crops: Tensor
    masks: Tensor
    things: Tensor
    grid: tuple[int, int]
    num_tokens: int


class PictureBank:
    """A file of pictures, opened."""

    def __init__(self, path: Path) -> None:
        tensors = read_tensors(path)
        self.crops, self.masks, self.things = tensors["crops"], tensors["masks"], tensors["things"]
        self.grids, self.num_tokens = tensors["grids"].tolist(), tensors["num_tokens"].tolist()
        self.starts = [0, *torch.tensor([1 + rows * columns for rows, columns in self.grids]).cumsum(0).tolist()]
        rows = read_rows(_questions_of(path))
        self.questions = tuple(tuple(Question(*asked) for asked in row["questions"]) for row in rows)

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, index: int) -> StoredImage:
        inside = slice(self.starts[index], self.starts[index + 1])
        rows, columns = self.grids[index]
        known = self.crops[inside], self.masks[inside], self.things[inside]
        return StoredImage(*known, (rows, columns), self.num_tokens[index])


def write_bank(path: Path, pictures: Iterable[Picture], config: VisionConfig, *, total: int) -> None:
    images, things, rows = [], [], []
    for picture in tqdm(pictures, desc=f"pictures: {path.stem}", total=total, disable=None):
        image = prepare_image(picture.image, config)
        images.append(replace(image, crops=image.crops.half()))
        things.append(places(picture, image, config))
        rows.append({"questions": [[asked.text, asked.answer, asked.task] for asked in picture.questions]})
    write_rows(_questions_of(path), rows)
    write_tensors(
        path,
        {
            "crops": torch.cat([image.crops for image in images]),
            "masks": torch.cat([image.masks for image in images]),
            "things": torch.cat(things),
            "grids": torch.tensor([image.grid for image in images]),
            "num_tokens": torch.tensor([image.num_tokens for image in images]),
        },
    )


def places(picture: Picture, image: PreparedImage, config: VisionConfig) -> Tensor:
    """The class of ``THINGS`` of what has its centre in each patch of each crop: int8 [crops, patches, patches]."""
    found = torch.full(image.masks.shape, 0 if picture.things else UNKNOWN, dtype=torch.int8)
    side, (rows, columns) = config.image_size, image.grid
    scale = min(columns * side / picture.image.width, rows * side / picture.image.height)
    for thing in picture.things:
        x, y = thing.x * scale, thing.y * scale  # on the tiles
        tile = 1 + int(y // side) * columns + int(x // side)
        for crop, across, down in ((0, x / columns, y / rows), (tile, x % side, y % side)):
            found[crop, int(down // config.patch_size), int(across // config.patch_size)] = 1 + THINGS.index(
                thing.words
            )
    return found


def vary_images(images: Sequence[StoredImage], generator: torch.Generator, strength: float) -> list[StoredImage]:
    """Random brightness, contrast and noise, the same in all crops of a picture."""
    varied = []
    for image in images:
        gain, offset, level = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        noise = torch.randn(image.crops.shape, generator=generator) * (0.05 * strength * (level + 1) / 2)
        crops = image.crops.float() * (1 + 0.1 * strength * gain) + 0.06 * strength * offset + noise
        varied.append(replace(image, crops=crops))
    return varied


def collate_images(images: Sequence[StoredImage]) -> ImageBatch:
    return ImageBatch(
        torch.cat([image.crops for image in images]).float(),
        torch.cat([image.masks for image in images]),
        tuple(image.grid for image in images),
    )


def _questions_of(path: Path) -> Path:
    return path.with_suffix(".jsonl")

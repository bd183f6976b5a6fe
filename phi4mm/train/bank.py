"""Stage: pictures prepared ahead of training, with their questions, in one file.

A file holds the crops of all its pictures one after another (float16), their patch masks, each picture's grid, and the
questions, answers and tasks as JSON lines beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from phi4mm.inputs.image import prepare_image
from phi4mm.model.batch import ImageBatch
from phi4mm.model.config import VisionConfig
from phi4mm.train.files import read_rows, read_tensors, write_rows, write_tensors
from phi4mm.train.pictures import Picture, Question


@dataclass(frozen=True)
class StoredImage:
    """Crops [crops, channels, size, size], masks [crops, patches, patches], tile rows and columns, tokens it takes."""

    crops: Tensor
    masks: Tensor
    grid: tuple[int, int]
    num_tokens: int


class PictureBank:
    """A file of pictures, opened."""

    def __init__(self, path: Path) -> None:
        tensors = read_tensors(path)
        self.crops, self.masks = tensors["crops"], tensors["masks"]
        self.grids, self.num_tokens = tensors["grids"].tolist(), tensors["num_tokens"].tolist()
        self.starts = [0, *torch.tensor([1 + rows * columns for rows, columns in self.grids]).cumsum(0).tolist()]
        rows = read_rows(_questions_of(path))
        self.questions = tuple(tuple(Question(*asked) for asked in row["questions"]) for row in rows)

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, index: int) -> StoredImage:
        inside = slice(self.starts[index], self.starts[index + 1])
        rows, columns = self.grids[index]
        return StoredImage(self.crops[inside], self.masks[inside], (rows, columns), self.num_tokens[index])


def write_bank(path: Path, pictures: Iterable[Picture], config: VisionConfig, *, total: int) -> None:
    images, rows = [], []
    for picture in tqdm(pictures, desc=f"pictures: {path.stem}", total=total, disable=None):
        images.append(prepare_image(picture.image, config))
        rows.append({"questions": [[asked.text, asked.answer, asked.task] for asked in picture.questions]})
    write_rows(_questions_of(path), rows)
    write_tensors(
        path,
        {
            "crops": torch.cat([image.crops.half() for image in images]),
            "masks": torch.cat([image.masks for image in images]),
            "grids": torch.tensor([image.grid for image in images]),
            "num_tokens": torch.tensor([image.num_tokens for image in images]),
        },
    )


def collate_images(images: Sequence[StoredImage]) -> ImageBatch:
    return ImageBatch(
        torch.cat([image.crops for image in images]).float(),
        torch.cat([image.masks for image in images]),
        tuple(image.grid for image in images),
    )


def _questions_of(path: Path) -> Path:
    return path.with_suffix(".jsonl")

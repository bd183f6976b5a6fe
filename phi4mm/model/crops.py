"""The geometry of a picture's crops: a global view, then a grid of tiles row by row, of which the picture fills the
upper left part.

It is that of microsoft/Phi-4-multimodal-instruct's processing_phi4mm.py: a token stands for 2x2 patches of a crop (the
last row and column of an odd number of patches make tokens of their own), and is useful when its upper left patch
shows picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phi4mm.model.config import VisionConfig

Grid = tuple[int, int]  # tile rows, tile columns


def cut(picture: Tensor, grid: Grid) -> Tensor:
    """[rows * height, columns * width, ...] -> its tiles, row by row [rows * columns, height, width, ...]."""
    rows, columns = grid
    tiles = picture.unflatten(0, (rows, -1)).unflatten(2, (columns, -1))
    return tiles.transpose(1, 2).flatten(0, 1)


def stitch(tiles: Tensor, grid: Grid) -> Tensor:
    """The inverse of ``cut``: [rows * columns, height, width, ...] -> [rows * height, columns * width, ...]."""
    return tiles.unflatten(0, grid).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def patch_masks(grid: Grid, height: int, width: int, config: VisionConfig) -> Tensor:
    """Which patches of the global view and the tiles show picture: bool [1 + tiles, patches, patches].

    Args:
        height, width: of the picture in pixels, as it lies on the tiles. The global view is whole.
    """
    patches = config.patches_per_side
    filled = torch.zeros(grid[0] * patches, grid[1] * patches, dtype=torch.bool)
    filled[: _filled(grid[0], height, config), : _filled(grid[1], width, config)] = True
    return torch.cat((torch.ones(1, patches, patches, dtype=torch.bool), cut(filled, grid)))


def _filled(tiles: int, length: int, config: VisionConfig) -> int:
    """How many of the patches along ``tiles`` tiles show some of the picture's ``length`` pixels."""
    return tiles * config.patches_per_side - (tiles * config.image_size - length) // config.patch_size


def useful_tokens(masks: Tensor, grid: Grid) -> tuple[int, int]:
    """Rows and columns of useful tokens on the stitched tiles of a picture with these patch masks."""
    useful = stitch(masks[1:, ::2, ::2], grid)
    return int(useful[:, 0].sum()), int(useful[0].sum())


def num_image_tokens(masks: Tensor, grid: Grid) -> int:
    """Tokens of a picture: the useful ones of its tiles and all of the global view, each of their rows with one at its
    end, and one between tiles and global view."""
    side = -(-masks.shape[-1] // 2)
    height, width = useful_tokens(masks, grid)
    return height * (width + 1) + 1 + side * (side + 1)

"""The geometry of a picture's crops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.model.config import VisionConfig
from phi4mm.model.crops import cut, num_image_tokens, patch_masks, stitch, useful_tokens

CONFIG = VisionConfig(image_size=56, patch_size=14)


def test_tiles_go_row_by_row() -> None:
    picture = torch.arange(4)[:, None] * 10 + torch.arange(6)
    tiles = cut(picture, (2, 3))
    assert tiles.shape == (6, 2, 2)
    assert tiles[1].tolist() == [[2, 3], [12, 13]]
    assert tiles[3].tolist() == [[20, 21], [30, 31]]


@given(st.tuples(*[st.integers(1, 4)] * 5))
def test_stitch_is_the_inverse_of_cut(sizes: tuple[int, ...]) -> None:
    rows, columns, height, width, channels = sizes
    picture = torch.randn(rows * height, columns * width, channels)
    assert torch.equal(stitch(cut(picture, (rows, columns)), (rows, columns)), picture)


def test_masks_and_tokens_of_a_partly_filled_grid() -> None:
    masks = patch_masks((2, 1), height=57, width=30, config=CONFIG)
    assert masks.shape == (3, 4, 4)
    assert masks[0].all()
    assert masks[1].sum(1).tolist() == [3, 3, 3, 3]  # 30 pixels reach into the third patch
    assert masks[2].sum(1).tolist() == [3, 0, 0, 0]
    assert useful_tokens(masks, (2, 1)) == (3, 2)
    assert num_image_tokens(masks, (2, 1)) == 3 * (2 + 1) + 1 + 2 * (2 + 1)

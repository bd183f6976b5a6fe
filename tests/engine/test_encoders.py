"""Media go through their towers in groups and in parts; none comes out otherwise than alone and whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from phi4mm.engine.encoders import MIN_SHARE, encode, encode_in_parts, next_group, padded_frames
from phi4mm.model.crops import Grid, num_image_tokens, patch_masks
from phi4mm.model.media import MediaItem, PreparedImage
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY
from tests.reference.transformers_port import relative_error

assert TINY.speech is not None
assert TINY.vision is not None
SPEECH, VISION = TINY.speech, TINY.vision


def clip(num_frames: int, projector: str = "speech") -> MediaItem:
    features = torch.randn(num_frames, SPEECH.num_mels, generator=torch.manual_seed(num_frames))
    return MediaItem("audio", features, projector, SPEECH.num_tokens(num_frames))


def image(rows: int, columns: int, height: int = 40, width: int = 40) -> MediaItem:
    """A picture on a grid of tiles; height and width in pixels on the last row and column of tiles."""
    grid = (rows, columns)
    side = VISION.image_size
    masks = patch_masks(grid, (rows - 1) * side + height, (columns - 1) * side + width, VISION)
    crops = torch.randn(len(masks), 3, side, side, generator=torch.manual_seed(rows * columns))
    num_tokens = num_image_tokens(masks, grid)
    return MediaItem("image", PreparedImage(crops, masks, grid, num_tokens), "image", num_tokens)


def alone(model: Phi4MMModel, item: MediaItem) -> Tensor:
    """Its embeddings without padding, in one pass."""
    if isinstance(item.features, PreparedImage):
        grids: tuple[Grid, ...] = (item.features.grid,)
        assert model.vision is not None
        [values] = model.vision(item.features.crops, item.features.masks, grids)
    else:
        assert model.speech is not None
        [values] = model.speech(item.features[None], torch.tensor([item.cost]), [item.projector])
    assert values.shape == (item.num_tokens, TINY.decoder.hidden_size)
    return values


LENGTHS = [90, 9, 33, 200, 199, 8, 700]
MIXED = (
    *(clip(frames, projector) for frames, projector in zip(LENGTHS, ["speech", "vision"] * 4, strict=False)),
    *(image(rows, columns) for rows, columns in ((1, 1), (2, 3), (1, 2), (1, 1))),
)


@pytest.mark.parametrize(("max_frames", "max_crops"), [(8192, 32), (400, 3), (1, 1)])
@torch.no_grad()
def test_media_of_any_kind_and_length_come_out_as_alone(
    tiny_model: Phi4MMModel, max_frames: int, max_crops: int
) -> None:
    together = encode(tiny_model, MIXED, max_frames=max_frames, max_crops=max_crops)
    for item, values in zip(MIXED, together, strict=True):
        assert relative_error(values, alone(tiny_model, item)) < 1e-5


@given(
    frames=st.lists(st.integers(1, 5000), max_size=40),
    crops=st.lists(st.integers(2, 37), max_size=10),
    max_frames=st.integers(1, 20000),
    max_crops=st.integers(1, 64),
    order=st.randoms(use_true_random=False),
)
def test_groups_begin_with_the_oldest_and_hold_little_padding(
    frames: list[int], crops: list[int], max_frames: int, max_crops: int, order: object
) -> None:
    waiting = [*(blank("audio", cost) for cost in frames), *(blank("image", cost) for cost in crops)]
    order.shuffle(waiting)  # type: ignore[attr-defined]
    while waiting:
        places = next_group(waiting, max_frames=max_frames, max_crops=max_crops)
        assert places == sorted(set(places))
        assert places[0] == 0
        group = [waiting[place] for place in places]
        costs = [item.cost for item in group]
        [kind] = {item.kind for item in group}
        if len(group) > 1 and kind == "image":
            assert sum(costs) <= max_crops
        elif len(group) > 1:
            assert min(costs) >= MIN_SHARE * max(costs)
            assert len(group) * padded_frames(max(costs)) <= max_frames
        waiting = [item for place, item in enumerate(waiting) if place not in places]


def blank(kind: str, cost: int) -> MediaItem:
    """With features of the right count and no content."""
    if kind == "audio":
        return MediaItem("audio", torch.empty(cost, 0), "speech", SPEECH.num_tokens(cost))
    crops = PreparedImage(torch.empty(cost, 0), torch.empty(cost, 0), (1, cost - 1), 0)
    return MediaItem("image", crops, "image", 0)


@given(st.integers(1, 200_000))
def test_clips_are_padded_by_an_eighth_at_most(num_frames: int) -> None:
    assert num_frames <= padded_frames(num_frames) < num_frames + max(8, num_frames / 8)


@pytest.mark.parametrize("num_frames", [2337, 2400, 161, 160, 5])
@pytest.mark.parametrize("max_frames", [1, 160, 500])
@torch.no_grad()
def test_a_long_clip_in_parts_equals_the_whole(tiny_model: Phi4MMModel, num_frames: int, max_frames: int) -> None:
    item = clip(num_frames, "vision")
    parts = list(encode_in_parts(tiny_model, item, max_frames=max_frames))
    bound = max(1, max_frames // SPEECH.window_frames) * SPEECH.window_tokens
    assert [len(part) for part in parts[:-1]] == [bound] * (len(parts) - 1)
    assert 0 < len(parts[-1]) <= bound
    assert relative_error(torch.cat(parts), alone(tiny_model, item)) < 1e-5


@pytest.mark.parametrize("max_crops", [1, 2, 7, 32])
@torch.no_grad()
def test_an_image_in_parts_equals_the_whole(tiny_model: Phi4MMModel, max_crops: int) -> None:
    item = image(2, 3)
    parts = list(encode_in_parts(tiny_model, item, max_crops=max_crops))
    assert len(parts) == -(-item.cost // max_crops)
    assert relative_error(torch.cat(parts), alone(tiny_model, item)) < 1e-5


@torch.no_grad()
def test_part_of_a_batch_of_clips(tiny_model: Phi4MMModel) -> None:
    """Clips that end before, in and after the part."""
    assert tiny_model.speech is not None
    lengths = [150, 320, 500, 330]
    items = [clip(frames) for frames in lengths]
    features = torch.nn.utils.rnn.pad_sequence(
        [item.features for item in items if isinstance(item.features, Tensor)], batch_first=True
    )
    parts = tiny_model.speech(features, torch.tensor(lengths), ["speech"] * 4, start=320, stop=480)
    for item, part in zip(items, parts, strict=True):
        expected = alone(tiny_model, item)[40:60]
        assert part.shape == expected.shape
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)

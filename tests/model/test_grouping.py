"""Clips and crops go through their towers in groups; no clip and no crop comes out otherwise than alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.model import speech, vision
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.speech import alike
from tests.conftest import TINY


@given(st.lists(st.integers(1, 5000), max_size=40))
def test_groups_hold_every_clip_and_little_padding(lengths: list[int]) -> None:
    groups = list(alike(lengths))
    assert sorted(clip for clips, _ in groups for clip in clips) == list(range(len(lengths)))
    for clips, padded in groups:
        longest, shortest = (pick(lengths[clip] for clip in clips) for pick in (max, min))
        assert longest <= padded < longest + max(8, longest / 8)
        assert len(clips) == 1 or (shortest >= speech.ALIKE * padded and len(clips) * padded <= speech.MOST_FRAMES)


@torch.no_grad()
def test_clips_of_any_lengths_come_out_as_alone(tiny_model: Phi4MMModel) -> None:
    assert TINY.speech is not None
    assert tiny_model.speech is not None
    lengths = [90, 9, 33, 200, 199, 8]
    features = torch.randn(len(lengths), max(lengths), TINY.speech.num_mels, generator=torch.manual_seed(0))
    projectors = ["speech", "vision"] * 3
    together = tiny_model.speech(features, torch.tensor(lengths), projectors)
    for clip, frames, name, embedded in zip(features, lengths, projectors, together, strict=True):
        [alone] = tiny_model.speech(clip[None, :frames], torch.tensor([frames]), [name])
        torch.testing.assert_close(embedded, alone, rtol=1e-5, atol=1e-5)
        assert len(alone) == TINY.speech.num_tokens(frames)


@torch.no_grad()
def test_crops_pass_the_tower_in_parts(tiny_model: Phi4MMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TINY.vision is not None
    assert tiny_model.vision is not None
    side, patches = TINY.vision.image_size, TINY.vision.patches_per_side
    crops = torch.randn(5, 3, side, side, generator=torch.manual_seed(0))
    masks = torch.ones(5, patches, patches, dtype=torch.bool)
    whole = tiny_model.vision(crops, masks, ((1, 2), (1, 1)))
    monkeypatch.setattr(vision, "MOST_CROPS", 2)
    for image, expected in zip(tiny_model.vision(crops, masks, ((1, 2), (1, 1))), whole, strict=True):
        torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)

"""The speech tower: blocks of a long clip equal the whole, and a padded clip equals the clip alone."""

from __future__ import annotations

import pytest
import torch

from phi4mm.model import speech
from phi4mm.model.phi4mm import Phi4MMModel
from tests.conftest import TINY


@pytest.mark.parametrize("num_frames", [(100,), (16,), (97, 33, 8), (64, 1)])
@torch.no_grad()
def test_blocks_equal_the_whole(
    tiny_model: Phi4MMModel, num_frames: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TINY.speech is not None
    assert tiny_model.speech is not None
    subsampling = tiny_model.speech.tower.subsampling
    features = torch.randn(len(num_frames), max(num_frames), TINY.speech.num_mels, generator=torch.manual_seed(0))
    lengths = torch.tensor(num_frames)
    whole, num_tokens = subsampling(features, lengths)
    monkeypatch.setattr(speech, "_BLOCK_FRAMES", 32)
    blocks, same = subsampling(features, lengths)
    assert torch.equal(num_tokens, same)
    assert num_tokens.tolist() == [TINY.speech.num_tokens(frames) for frames in num_frames]
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-5)
    for clip, frames, expected in zip(features, num_frames, whole, strict=True):
        alone, _ = subsampling(clip[None, :frames], torch.tensor([frames]))
        torch.testing.assert_close(alone[0], expected[: alone.shape[1]], rtol=1e-5, atol=1e-5)

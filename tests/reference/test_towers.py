"""Each part of the model against transformers' port: relative error under 1e-4 in float32, random weights.

Compared where the port's own padding cannot leak: clips of equal length, whole 40 s windows.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.crops import patch_masks
from phi4mm.model.lora import row_adapters
from tests.reference.transformers_port import (
    Pair,
    make_pair,
    port_inputs,
    random_batch,
    relative_error,
    small_config,
)

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.mark.parametrize(
    ("grid", "height", "width"), [((1, 1), 4, 4), ((1, 2), 4, 6), ((2, 3), 7, 12), ((3, 1), 10, 3)]
)
@torch.no_grad()
def test_image_embedding(pair: Pair, grid: tuple[int, int], height: int, width: int) -> None:
    """A picture of ``height`` x ``width`` patches on a grid of tiles."""
    check_image(pair, grid, height, width)


@torch.no_grad()
def test_image_with_odd_patches_per_side() -> None:
    config = small_config()
    assert config.vision is not None
    vision = dataclasses.replace(config.vision, image_size=70)
    check_image(make_pair(dataclasses.replace(config, vision=vision)), (2, 1), 8, 5)


def check_image(pair: Pair, grid: tuple[int, int], height: int, width: int) -> None:
    assert pair.ours.vision is not None
    config = pair.ours.vision.config
    masks = patch_masks(grid, height * config.patch_size, width * config.patch_size, config)
    crops = torch.randn(len(masks), 3, config.image_size, config.image_size, generator=torch.manual_seed(3))
    (ours,) = pair.ours.vision(crops, masks, (grid,))

    token_ids = torch.full((1, len(ours)), config.image_token_id)
    with pair.adapter(None) as port:
        theirs = port.model.embed_tokens_extend.image_embed(
            token_ids,
            torch.zeros(1, len(ours), pair.ours.config.decoder.hidden_size),
            image_pixel_values=crops[None],
            image_sizes=torch.tensor([grid]) * config.image_size,
            image_attention_mask=masks[None],
        )
    assert relative_error(ours, theirs[0]) < TOLERANCE


@pytest.mark.parametrize(("num_clips", "num_frames"), [(1, 8), (1, 133), (3, 100), (1, 8000), (2, 4000)])
@pytest.mark.parametrize("projector", ["speech", "vision"])
@torch.no_grad()
def test_speech_embedding(pair: Pair, num_clips: int, num_frames: int, projector: str) -> None:
    assert pair.ours.speech is not None
    config = pair.ours.config.speech
    assert config is not None
    features = torch.randn(num_clips, num_frames, config.num_mels, generator=torch.manual_seed(4))
    lengths = torch.full((num_clips,), num_frames)
    ours = torch.cat(pair.ours.speech(features, lengths, [projector] * num_clips))

    num_tokens = config.num_tokens(num_frames)
    with pair.adapter(None) as port:
        theirs = port.model.embed_tokens_extend.audio_embed(
            torch.full((num_clips, num_tokens), config.audio_token_id),
            torch.zeros(num_clips, num_tokens, pair.ours.config.decoder.hidden_size),
            audio_input_features=features,
            audio_embed_sizes=[num_tokens] * num_clips,
            audio_attention_mask=torch.ones(num_clips, num_frames, dtype=torch.bool),
            audio_projection_mode=projector,
        )
    assert relative_error(ours, theirs.flatten(0, 1)) < TOLERANCE


def decoder_variant(**changes: object) -> Phi4MMConfig:
    config = small_config()
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 100])
@pytest.mark.parametrize("adapter", [None, "vision", "speech"])
@torch.no_grad()
def test_decoder(pair: Pair, num_tokens: int, adapter: str | None) -> None:
    """64 tokens take the short rope factors, 65 the long ones."""
    check_decoder(pair, num_tokens, adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 7},
        {"sliding_window": None},
        {"tie_embeddings": False},
        {"short_factor": (), "long_factor": ()},
        {"partial_rotary_factor": 1.0, "short_factor": (1.0,) * 8, "long_factor": (2.0,) * 8},
        {"num_kv_heads": 4, "rope_theta": 500.0, "norm_eps": 1e-2},
    ],
    ids=lambda changes: next(iter(changes)),
)
@torch.no_grad()
def test_decoder_variants(changes: dict[str, object]) -> None:
    check_decoder(make_pair(decoder_variant(**changes)), 80, "speech")


def check_decoder(pair: Pair, num_tokens: int, adapter: str | None) -> None:
    decoder = pair.ours.decoder
    token_ids = torch.randint(0, 280, (2, num_tokens), generator=torch.manual_seed(5))
    hidden = decoder(
        decoder.embed_tokens(token_ids),
        torch.arange(num_tokens).expand(2, -1),
        pair.ours.long_rows(torch.full((2,), num_tokens)),
        row_adapters([(adapter,) if adapter else ()] * 2, device="cpu"),
    )
    with pair.adapter(adapter) as port:
        theirs = port(input_ids=token_ids, use_cache=False).logits
    assert relative_error(decoder.logits(hidden), theirs) < TOLERANCE


@pytest.mark.parametrize("adapter", [None, "vision", "speech"])
@pytest.mark.parametrize(("image", "audio"), [(True, False), (False, True), (True, True)])
@torch.no_grad()
def test_whole_model(pair: Pair, adapter: str | None, image: bool, audio: bool) -> None:
    batch = random_batch(pair.ours.config, adapter, image=image, audio=audio)
    with pair.adapter(adapter) as port:
        theirs = port(**port_inputs(batch, pair.ours.config)).logits
    assert relative_error(pair.ours(batch), theirs) < TOLERANCE

"""Parity of the front ends with transformers' feature extractor and image processor, and with published values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phi4mm.errors import ImageError
from phi4mm.inputs.audio import Waveform, load_audio, log_mel
from phi4mm.inputs.image import prepare_image, tile_grid
from phi4mm.model.config import VisionConfig


def tone_in_noise(samples: int) -> np.ndarray:
    """Loud and quiet bands side by side, which is what rounding shows in."""
    noise = np.random.default_rng(0).normal(0, 1e-4, samples)
    return (0.9 * np.sin(np.arange(samples) * 0.3) + noise).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32),
        tone_in_noise(20001),
        np.zeros(1600, np.float32),
        tone_in_noise(400),
    ],
    ids=["noise", "tone", "silence", "one frame"],
)
def test_log_mel_is_that_of_transformers(samples: np.ndarray) -> None:
    from transformers.models.phi4_multimodal.feature_extraction_phi4_multimodal import (
        Phi4MultimodalFeatureExtractor,
    )

    reference = Phi4MultimodalFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(
        log_mel(Waveform(samples, 16000)), reference["audio_input_features"][0], rtol=0, atol=1e-4
    )


def test_log_mel_is_that_of_an_independent_implementation(data_folder: Path) -> None:
    folder = data_folder / "phi4_frontend"
    features = log_mel(load_audio(folder / "1272-141231-0002.wav"))
    expected = np.loadtxt(folder / "log_mel_first10.csv", delimiter=",")
    assert features.shape == (1332, 80)
    np.testing.assert_allclose(features[:, :10], expected, rtol=1e-3, atol=1e-2)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("image_size", "max_crops", "width", "height"),
    [
        (448, 36, 448, 448),
        (448, 36, 1, 1),
        (448, 36, 449, 448),
        (448, 36, 640, 481),
        (448, 36, 37, 900),
        (448, 36, 1, 44),
        (448, 3, 1000, 700),
        (56, 6, 57, 200),
        (56, 6, 300, 200),
        (56, 6, 1000, 30),
        (42, 7, 17, 64),
        (42, 7, 300, 200),
    ],
)
def test_crops_are_those_of_transformers(image_size: int, max_crops: int, width: int, height: int) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    config = VisionConfig(image_size=image_size, patch_size=14, max_crops=max_crops)
    processor = Phi4MultimodalImageProcessor(
        size={"height": image_size, "width": image_size}, patch_size=14, dynamic_hd=max_crops
    )
    image = picture(width, height)
    expected = processor([image], return_tensors="pt")
    prepared = prepare_image(image, config)

    rows, columns = prepared.grid
    assert expected["image_sizes"].tolist() == [[rows * image_size, columns * image_size]]
    assert torch.equal(prepared.masks, expected["image_attention_mask"][0].bool())
    # transformers writes 256 + 16 for the global view of any size.
    base = config.tokens_per_side
    assert prepared.num_tokens - base * (base + 1) == int(expected["num_img_tokens"][0]) - 16 * 17
    # Pillow and torchvision round a resized 8-bit value differently, by one at most; bicubic weights sum to under 2.
    difference = (prepared.crops - expected["image_pixel_values"][0]).abs() * 127.5
    assert difference[1:].max() <= 1.01
    assert difference[0].max() <= 2.0
    assert difference.mean() < 0.3


@pytest.mark.parametrize(("width", "height"), [(1, 10000), (10000, 1), (1, 45)])
def test_extreme_pictures_are_refused_where_transformers_refuses(width: int, height: int) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    with pytest.raises(ValueError, match="extreme"):
        Phi4MultimodalImageProcessor()([picture(width, height)], return_tensors="pt")
    with pytest.raises(ImageError, match="aspect ratio"):
        prepare_image(picture(width, height), VisionConfig())


@pytest.mark.parametrize("max_crops", [1, 2, 6, 12, 36])
def test_grids_are_those_of_transformers(max_crops: int) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    processor = Phi4MultimodalImageProcessor()
    target_ratios = sorted(
        {(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops + 1) if i * j <= max_crops},
        key=lambda ratio: ratio[0] * ratio[1],
    )
    side = 56
    generator = np.random.default_rng(0)
    for width, height in 28 * generator.integers(1, 60, (200, 2)):
        if -(-width // side) * -(-height // side) > max_crops:
            columns, rows = processor.find_closest_aspect_ratio(width / height, target_ratios, width, height, side)
            assert tile_grid(int(width), int(height), side, max_crops) == (rows, columns)

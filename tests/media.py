"""Clips and pictures that are made up."""

from __future__ import annotations

import numpy as np
from PIL import Image


def speech(seconds: float, seed: int = 0) -> tuple[np.ndarray, int]:
    """Noise with a moving pitch: every frame of its log-mel differs."""
    time = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time) + noise).astype(np.float32), 16000


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

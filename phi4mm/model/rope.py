"""LongRoPE: rotary position embedding with one stretch factor per rotated pair (Ding et al. 2024, arXiv 2402.13753)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phi4mm.model.config import DecoderConfig


def inverse_frequencies(config: DecoderConfig, device: torch.device) -> Tensor:
    """Radians per position of each rotated pair, with the short factors and with the long ones: [2, pairs], float32."""
    exponents = torch.arange(0, config.rotary_size, 2, device=device).float() / config.rotary_size
    frequencies = config.rope_theta**exponents
    short = frequencies * _factors(config.short_factor, frequencies)
    long = frequencies * _factors(config.long_factor, frequencies)
    return 1.0 / torch.stack((short, long))


def rotary_tables(
    config: DecoderConfig, positions: Tensor, long_rows: Tensor, frequencies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The cosines and sines that rotate queries and keys, in float32.

    Args:
        config: the decoder's sizes and factors.
        positions: token positions [rows, tokens].
        long_rows: bool [rows]; true where the row's length exceeds ``original_max_positions`` and so takes the long
            factors.
        frequencies: of ``inverse_frequencies``, where they are kept.

    Returns:
        cos and sin, each [rows, tokens, rotary_size], scaled by sqrt(1 + ln(max / original) / ln original).
    """
    if frequencies is None:
        frequencies = inverse_frequencies(config, positions.device)
    short, long = frequencies
    inverse = torch.where(long_rows[:, None], long, short)
    angles = positions[..., None].float() * inverse[:, None, :]
    angles = torch.cat((angles, angles), dim=-1)
    scale = rotary_scale(config)
    return angles.cos() * scale, angles.sin() * scale


def rotary_scale(config: DecoderConfig) -> float:
    """The attention scale of LongRoPE; 1 where the factors or a longer range are absent."""
    stretch = config.max_positions / config.original_max_positions
    if not config.long_factor or stretch <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(stretch) / math.log(config.original_max_positions))


def _factors(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device) if values else torch.ones_like(like)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first ``rotary_size`` dimensions of ``states`` [rows, heads, tokens, head]; pass the rest through."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotary_size = cos.shape[-1]
    turned, passed = states[..., :rotary_size], states[..., rotary_size:]
    first, second = turned.chunk(2, dim=-1)
    half_turned = torch.cat((-second, first), dim=-1)
    return torch.cat((turned * cos + half_turned * sin, passed), dim=-1)

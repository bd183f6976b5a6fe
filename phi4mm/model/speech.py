"""The Conformer speech tower and its projectors: log-mel frames in, decoder-width embeddings out.

Phi-4-multimodal technical report, section 2.2 ("speech encoder and projector"). No padding reaches a result: every
strided convolution reads zeros past the end of a clip, as it would for the clip alone, and attention is masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.config import SpeechConfig
from phi4mm.model.projector import Projector

_BLOCK_FRAMES = 2048  # about 20 s; a power of two, and so a multiple of any time reduction


class Subsampling(nn.Module):
    """Stride-2 3x3 convolutions over (time, mel), all but the first depthwise + pointwise (as in NeMo)."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        channels = config.subsampling_channels
        stages = [nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1))]
        for _ in range(config.num_halvings - 1):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels),
                    nn.Conv2d(channels, channels, 1),
                )
            )
        self.stages = nn.ModuleList(stages)
        mels = config.num_mels
        for _ in stages:
            mels = (mels + 1) // 2
        self.out = nn.Linear(channels * mels, config.hidden_size)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """[clips, frames, mels] and valid frames per clip -> [clips, tokens, hidden] and valid tokens per clip.

        Long clips are run block by block, so that the memory of the convolutions does not grow with their length. A
        token depends on no frame after its own, and on no more before them than make one token.
        """
        reduction = 2 ** len(self.stages)
        blocks = []
        for start in range(0, features.shape[1], _BLOCK_FRAMES):
            first = max(0, start - reduction)  # one token more, which is dropped
            block = features[:, first : start + _BLOCK_FRAMES]
            blocks.append(self._run(block, (num_frames - first).clamp(min=0))[:, (start - first) // reduction :])
        lengths = num_frames
        for _ in self.stages:
            lengths = (lengths + 1) // 2
        return self.out(torch.cat(blocks, dim=1)), lengths

    def _run(self, features: Tensor, lengths: Tensor) -> Tensor:
        """[clips, frames, mels] -> [clips, tokens, channels * mels left]."""
        # Channels last: depthwise convolutions then run over neighbouring values, and pointwise ones are products.
        # (A single channel lies either way; these strides say which.)
        past_end = _positions(features.shape[1], lengths) >= lengths[:, None]
        hidden = features.masked_fill(past_end[:, :, None], 0.0)[..., None].permute(0, 3, 1, 2)
        for stage in self.stages:
            hidden = stage(hidden).contiguous(memory_format=torch.channels_last)
            lengths = (lengths + 1) // 2
            # Of what lies past a clip's end, a stride-2 convolution of three frames reads the first alone.
            clips = (lengths < hidden.shape[2]).nonzero()[:, 0]
            hidden[clips, :, lengths[clips]] = 0.0
            hidden = F.relu(hidden, inplace=True)
        return hidden.transpose(1, 2).flatten(2)


def _positions(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device)[None]


class RelativeBias(nn.Module):
    """One learned bias per head and relative distance, added to the attention logits (after T5)."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.max_distance = config.bias_max_distance
        self.symmetric = config.bias_symmetric
        buckets = self.max_distance if self.symmetric else 2 * self.max_distance
        self.weight = nn.Parameter(torch.zeros(buckets, config.num_heads))

    def forward(self, num_tokens: int) -> Tensor:
        """Returns [1, heads, tokens, tokens]; entry (i, j) belongs to the distance j - i."""
        positions = torch.arange(num_tokens, device=self.weight.device)
        distance = (positions[None, :] - positions[:, None]).clamp(-self.max_distance, self.max_distance - 1)
        bucket = distance.abs().clamp(max=self.max_distance - 1) if self.symmetric else distance + self.max_distance
        return self.weight[bucket].permute(2, 0, 1).unsqueeze(0)


class GatedFeedForward(nn.Module):
    """Linear, swish gate (the second half is the gate), Linear."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.gate_up_proj(self.norm(hidden)).chunk(2, dim=-1)
        return self.down_proj(value * F.silu(gate))


class SpeechAttention(nn.Module):
    """Multi-head self-attention with an additive bias."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            proj(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class ConvolutionModule(nn.Module):
    """Gated pointwise, causal depthwise, two pointwise convolutions (after Gulati et al. 2020, figure 2)."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.pointwise_in = nn.Linear(width, 2 * width)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.gate_bias = nn.Parameter(torch.zeros(width))
        self.depthwise = nn.Conv1d(width, width, config.conv_kernel_size, groups=width)
        self.pointwise_mid = nn.Linear(width, width)
        self.pointwise_out = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.pointwise_in(self.norm(hidden)).chunk(2, dim=-1)
        gated = (value + self.value_bias) * F.silu(gate + self.gate_bias)
        causal = F.pad(gated.transpose(1, 2), (self.depthwise.kernel_size[0] - 1, 0))
        mixed = self.pointwise_mid(self.depthwise(causal).transpose(1, 2))
        return self.pointwise_out(F.silu(mixed))


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm (Gulati et al. 2020, equation 1)."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.feed_forward_in = GatedFeedForward(config)
        self.attention = SpeechAttention(config)
        self.convolution = ConvolutionModule(config)
        self.feed_forward_out = GatedFeedForward(config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = hidden + 0.5 * self.feed_forward_in(hidden)
        hidden = hidden + self.attention(hidden, bias)
        hidden = hidden + self.convolution(hidden)
        hidden = hidden + 0.5 * self.feed_forward_out(hidden)
        return self.norm(hidden)


class SpeechTower(nn.Module):
    """Log-mel frames to one vector per ``time_reduction`` frames; attention stays within ``window_tokens``."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.window_tokens = config.window_tokens
        self.time_reduction = config.time_reduction
        self.register_buffer("mean", torch.zeros(config.num_mels))
        self.register_buffer("inverse_std", torch.ones(config.num_mels))
        self.subsampling = Subsampling(config)
        self.relative_bias = RelativeBias(config)
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))

    def forward(
        self, features: Tensor, num_frames: Tensor, *, start: int = 0, stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode a padded batch of clips; each clip's result is the one that it has alone.

        Args:
            features: log-mel [clips, frames, mels]; what lies past a clip's end is ignored.
            num_frames: valid frames of each clip [clips].
            start, stop: encode these frames alone; the result is that part of the whole clips'. Each is a multiple of
                ``SpeechConfig.window_frames``; a ``stop`` of ``None`` or past the last frame is the end.

        Returns:
            Encoded [clips, tokens, hidden] and the valid tokens of each clip [clips], from ``start`` to ``stop``.
        """
        first = max(0, start - self.time_reduction)  # the first token depends on these frames too
        normalised = (features[:, first:stop] - self.mean) * self.inverse_std
        hidden, lengths = self.subsampling(normalised, (num_frames - first).clamp(0, normalised.shape[1]))
        lead = (start - first) // self.time_reduction
        hidden, lengths = hidden[:, lead:], (lengths - lead).clamp(min=0)
        num_clips, num_tokens, width = hidden.shape
        window = min(num_tokens, self.window_tokens)

        padded = F.pad(hidden, (0, 0, 0, -num_tokens % window))
        windows = padded.view(-1, window, width)
        starts = torch.arange(0, padded.shape[1], window, device=hidden.device)
        valid = (lengths[:, None] - starts).clamp(0, window).flatten()
        used = valid > 0  # a window of padding alone has nothing to attend to

        encoded_windows = self._encode_windows(windows[used], valid[used])
        encoded = encoded_windows.new_zeros(windows.shape)  # under autocast its dtype is not that of ``windows``
        encoded[used] = encoded_windows
        return encoded.view(num_clips, -1, width)[:, :num_tokens], lengths

    def _encode_windows(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """[windows, tokens, hidden] with the valid tokens of each window -> the same shape."""
        num_tokens = hidden.shape[1]
        bias = self.relative_bias(num_tokens).to(hidden.dtype)
        padding = _positions(num_tokens, valid) >= valid[:, None]
        if padding.any():
            bias = bias.masked_fill(padding[:, None, None, :], float("-inf"))
        for block in self.blocks:
            hidden = block(hidden, bias)
        return hidden


class Speech(nn.Module):
    """The tower with its two projectors: "speech", and "vision" for audio beside an image."""

    def __init__(self, config: SpeechConfig, decoder_size: int) -> None:
        super().__init__()
        self.config = config
        self.tower = SpeechTower(config)
        self.projectors = nn.ModuleDict(
            {name: Projector(config.hidden_size, decoder_size) for name in ("speech", "vision")}
        )

    def forward(
        self,
        features: Tensor,
        num_frames: Tensor,
        projectors: Sequence[str],
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> list[Tensor]:
        """Embed a padded batch of clips, each through the projector that its row's route names.

        Args:
            features: log-mel [clips, frames, mels].
            num_frames: valid frames [clips].
            projectors: one projector name per clip.
            start, stop: embed these frames alone: see ``SpeechTower.forward``.

        Returns:
            One [tokens, decoder width] tensor per clip.
        """
        encoded, lengths = self.tower(features, num_frames, start=start, stop=stop)
        return [
            self.projectors[name](values[:length])
            for name, values, length in zip(projectors, encoded, lengths.tolist(), strict=True)
        ]

"""The SigLIP vision tower, the merging of tiled crops, and the image projector.

SigLIP: Zhai et al. 2023. Tiled crops with separators: Phi-4-multimodal technical report, section 2.2 ("dynamic
multi-crop"); positions of partly filled crops as in NaViT (Dehghani et al. 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.config import VisionConfig
from phi4mm.model.crops import Grid, stitch, useful_tokens
from phi4mm.model.projector import Projector


class PatchEmbedding(nn.Module):
    """One vector per patch, plus a learned position taken at the patch's fractional place in the filled area."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patches_per_side = config.patches_per_side
        self.patch = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position = nn.Parameter(torch.empty(config.patches_per_side**2, config.hidden_size))
        nn.init.normal_(self.position, std=config.hidden_size**-0.5)

    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        """[crops, channels, size, size] and patch masks [crops, side, side] -> [crops, patches, hidden]."""
        patches = self.patch(crops).flatten(2).transpose(1, 2)
        return patches + self.position[self._position_index(masks)]

    def _position_index(self, masks: Tensor) -> Tensor:
        """Index into the learned positions [crops, patches]; patches of padding take index 0.

        The buckets are computed in float32, rounding included, as the checkpoint was trained with.
        """
        side = self.patches_per_side
        boundaries = torch.arange(1 / side, 1.0, 1 / side, device=masks.device)
        steps = torch.arange(side, device=masks.device, dtype=torch.float32)

        def buckets(filled: Tensor) -> Tensor:
            fractions = (steps * (1.0 / filled)[:, None]).clamp(max=1.0 - 1e-6)
            return torch.bucketize(fractions, boundaries, right=True)

        rows, columns = buckets(masks[:, :, 0].sum(dim=1)), buckets(masks[:, 0, :].sum(dim=1))
        index = rows[:, :, None] * side + columns[:, None, :]
        return torch.where(masks, index, 0).flatten(1)


class VisionAttention(nn.Module):
    """Multi-head self-attention over the patches of a crop."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            proj(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class VisionLayer(nn.Module):
    """Pre-norm attention and a two-layer MLP with tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden + self.attention(self.norm1(hidden), mask)
        return hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden)), approximate="tanh"))


class VisionTower(nn.Module):
    """Crops to patch features, up to ``feature_layer``; the layers after it are not part of the model."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embedding = PatchEmbedding(config)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_used_layers))

    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        """[crops, channels, size, size] and bool masks [crops, side, side] -> [crops, side * side, hidden]."""
        hidden = self.embedding(crops, masks)
        keys = masks.flatten(1)
        mask = None
        if not bool(keys.all()):  # one additive mask for all layers: a boolean one would be turned into it in each
            mask = torch.zeros_like(keys, dtype=hidden.dtype).masked_fill_(~keys, float("-inf"))[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


class Vision(nn.Module):
    """The tower, 2x2 averaging, separators and the projector."""

    def __init__(self, config: VisionConfig, decoder_size: int) -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTower(config)
        self.row_separator = nn.Parameter(torch.zeros(config.hidden_size))  # "sub_GN"
        self.view_separator = nn.Parameter(torch.zeros(config.hidden_size))  # "glb_GN"
        self.projector = Projector(config.hidden_size, decoder_size)

    def forward(self, crops: Tensor, masks: Tensor, grids: tuple[Grid, ...]) -> list[Tensor]:
        """Embed images given as the crops of all of them, one after another, in one pass of the tower.

        Args:
            crops: [crops, channels, size, size]; of each image the global view, then its tiles row by row.
            masks: bool [crops, side, side], which patches show picture.
            grids: tile rows and columns of each image.

        Returns:
            One [tokens, decoder width] tensor per image: see ``assemble``.
        """
        counts = [1 + rows * columns for rows, columns in grids]
        features = self.tokens(crops, masks).split(counts)
        return [self.assemble(*image) for image in zip(features, masks.split(counts), grids, strict=True)]

    def tokens(self, crops: Tensor, masks: Tensor) -> Tensor:
        """Crops as in ``forward`` to their 2x2-averaged features [crops, tokens per side, tokens per side, hidden]."""
        return self.averaged(self.tower(crops, masks))

    def averaged(self, features: Tensor) -> Tensor:
        """Patch features [crops, patches, hidden], averaged over squares of 2x2, as ``tokens`` returns them."""
        side = self.config.patches_per_side
        square = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if side % 2:
            square = F.pad(square, (0, 1, 0, 1), mode="reflect")
        return F.avg_pool2d(square, 2).permute(0, 2, 3, 1)

    def assemble(self, features: Tensor, masks: Tensor, grid: Grid) -> Tensor:
        """Embed one image from the ``tokens`` of its crops [1 + tiles, side, side, hidden], and their masks.

        Returns:
            [tokens, decoder width]: the useful tokens of the tiles, the view separator, the global view; every row of
            either view ends in the row separator.
        """
        height, width = useful_tokens(masks, grid)
        tiles = stitch(features[1:], grid)[:height, :width]
        views = (self._with_row_ends(tiles), self.view_separator[None], self._with_row_ends(features[0]))
        return self.projector(torch.cat(views))

    def _with_row_ends(self, square: Tensor) -> Tensor:
        """[rows, columns, hidden] -> [rows * (columns + 1), hidden]."""
        ends = self.row_separator.expand(square.shape[0], 1, -1)
        return torch.cat((square, ends), dim=1).flatten(0, 1)

"""From a tower's width to the decoder's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(in_size, out_size)
        self.down_proj = nn.Linear(out_size, out_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_size] -> [..., out_size]."""
        return self.down_proj(F.gelu(self.up_proj(hidden)))

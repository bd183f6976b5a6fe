"""What the model takes: token ids, the features of the media among them, and one route per row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from phi4mm.types import Route


@dataclass(frozen=True)
class ImageBatch:
    """The images of a batch, row after row, in the order in which their tokens stand.

    Attributes:
        crops: float [crops, channels, size, size]; of each image the global view, then its tiles row by row.
        masks: bool [crops, patches, patches], which patches hold picture.
        grids: tile rows and columns of each image.
    """

    crops: Tensor
    masks: Tensor
    grids: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AudioBatch:
    """The clips of a batch, row after row, in the order in which their tokens stand.

    Attributes:
        features: log-mel, float [clips, frames, mels], padded at the end.
        num_frames: valid frames of each clip [clips].
        rows: the row that each clip belongs to.
    """

    features: Tensor
    num_frames: Tensor
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of any mixture of modalities.

    Attributes:
        token_ids: [rows, tokens], padded at the end.
        lengths: valid tokens of each row [rows].
        routes: one per row.
        images, audios: ``None`` where no row has any.
    """

    token_ids: Tensor
    lengths: Tensor
    routes: tuple[Route, ...]
    images: ImageBatch | None = None
    audios: AudioBatch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on ``device``."""
        images, audios = self.images, self.audios
        if images is not None:
            images = replace(images, crops=images.crops.to(device), masks=images.masks.to(device))
        if audios is not None:
            audios = replace(audios, features=audios.features.to(device), num_frames=audios.num_frames.to(device))
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            lengths=self.lengths.to(device),
            images=images,
            audios=audios,
        )

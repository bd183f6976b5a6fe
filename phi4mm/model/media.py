"""A row's media, ready for their towers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class PreparedImage:
    """One picture, ready for the vision tower. S is the side of a crop in pixels, P in patches.

    Attributes:
        crops: float32 [1 + tiles, 3, S, S] in [-1, 1] (the bicubic global view may reach a little beyond): the global
            view, then the tiles row by row.
        masks: bool [1 + tiles, P, P], False for patches of padding alone.
        grid: tile rows, tile columns.
        num_tokens: how many tokens the picture takes in the prompt.
    """

    crops: Tensor
    masks: Tensor
    grid: tuple[int, int]
    num_tokens: int


@dataclass(frozen=True)
class MediaItem:
    """One medium of a row.

    Attributes:
        kind: "image" or "audio".
        features: a clip's log-mel [frames, mels], or a picture's crops; on the CPU.
        projector: what its embeddings pass: of audio "speech" or "vision", as the row's route names it; else "image".
        num_tokens: tokens that it takes in the prompt.
        start: where in the row's token ids the first of them stands.
        digest: of the content and the projector; items with equal digests have equal features and equal embeddings
            (of one model). Caches of embeddings, keys and values identify media by it.
    """

    kind: Literal["image", "audio"]
    features: Tensor | PreparedImage = field(compare=False, repr=False)
    projector: str
    num_tokens: int
    start: int = 0
    digest: bytes = b""

    @property
    def cost(self) -> int:
        """The tower's work: frames of a clip, crops of a picture."""
        return len(self.features.crops if isinstance(self.features, PreparedImage) else self.features)

    @property
    def nbytes(self) -> int:
        """Memory of the features."""
        if isinstance(self.features, PreparedImage):
            return self.features.crops.nbytes + self.features.masks.nbytes
        return self.features.nbytes

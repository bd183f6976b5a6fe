"""A row's media, ready for their towers."""

from __future__ import annotations

import threading
from collections.abc import Callable
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


Features = Tensor | PreparedImage  # a clip's log-mel [frames, mels], or a picture's crops; on the CPU


class Deferred:
    """Features that are made when they are first asked for, in the thread that asks: a medium whose embeddings are kept
    needs none.

    Args:
        make: makes them.
        cost, nbytes: of what it makes: see ``MediaItem``.
    """

    def __init__(self, make: Callable[[], Features], cost: int, nbytes: int) -> None:
        self.cost, self.nbytes = cost, nbytes
        self._make: Callable[[], Features] | None = make
        self._made: Features | None = None
        self._lock = threading.Lock()

    def get(self) -> Features:
        with self._lock:
            if self._made is None:
                assert self._make is not None
                self._made, self._make = self._make(), None  # what they are made of is let go
            return self._made


@dataclass(frozen=True)
class MediaItem:
    """One medium of a row.

    Attributes:
        kind: "image" or "audio".
        source: its features, or what makes them.
        projector: what its embeddings pass: of audio "speech" or "vision", as the row's route names it; else "image".
        num_tokens: tokens that it takes in the prompt.
        start: where in the row's token ids the first of them stands.
        digest: of the content and the projector; items with equal digests have equal features and equal embeddings
            (of one model). Caches of embeddings, keys and values identify media by it.
    """

    kind: Literal["image", "audio"]
    source: Features | Deferred = field(compare=False, repr=False)
    projector: str
    num_tokens: int
    start: int = 0
    digest: bytes = b""

    def prepare(self) -> None:
        """Make the features now, where they are not."""
        if isinstance(self.source, Deferred):
            self.source.get()

    @property
    def features(self) -> Features:
        """A clip's log-mel [frames, mels], or a picture's crops; on the CPU."""
        return self.source.get() if isinstance(self.source, Deferred) else self.source

    @property
    def cost(self) -> int:
        """The tower's work: frames of a clip, crops of a picture."""
        return self.source.cost if isinstance(self.source, Deferred) else cost_of(self.source)

    @property
    def nbytes(self) -> int:
        """Memory of the features."""
        return self.source.nbytes if isinstance(self.source, Deferred) else nbytes_of(self.source)


def cost_of(features: Features) -> int:
    """Frames of a clip, crops of a picture."""
    return len(features.crops if isinstance(features, PreparedImage) else features)


def nbytes_of(features: Features) -> int:
    """Memory of features."""
    if isinstance(features, PreparedImage):
        return features.crops.nbytes + features.masks.nbytes
    return features.nbytes

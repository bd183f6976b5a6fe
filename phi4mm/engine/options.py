"""How the engine works: the bounds of its memory and of its steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from phi4mm.validate import check_number, check_whole, make_plain

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EngineOptions:
    """Bounds of the engine.

    Attributes:
        max_rows: the most rows that are decoded together.
        cache_tokens: tokens that the KV cache holds, of all rows and kept prefixes together; ``None``: ``cache_share``
            of the memory that is free when the first row comes, on a CPU at most 131,072 tokens.
        cache_share: that share, 0 to 1.
        prefill_tokens: prompt tokens computed between two decode steps; four times as many where no row is decoded.
        encoder_frames, encoder_crops: log-mel frames, or crops of images, encoded between two decode steps.
        encoder_bytes: embeddings of media that are kept for later rows.
        read_ahead_bytes: features of media that are read but not encoded; at least one request is read.

    Raises:
        PromptError: a value has the wrong type or is out of range; it names the option.
    """

    max_rows: int = 64
    cache_tokens: int | None = None
    cache_share: float = 0.25
    prefill_tokens: int = 512
    encoder_frames: int = 8192
    encoder_crops: int = 32
    encoder_bytes: int = 256 << 20
    read_ahead_bytes: int = 256 << 20

    @classmethod
    def on(cls, device: torch.device, **bounds: Any) -> EngineOptions:
        """The bounds with the defaults of a device: a GPU is not busy with a step as small as a CPU's, because each
        operation takes as long to launch as to compute."""
        if device.type == "cuda":
            bounds = {"prefill_tokens": 2048, "encoder_frames": 65536, "encoder_crops": 64} | bounds
        return cls(**bounds)

    def __post_init__(self) -> None:
        make_plain(self)
        check_number("cache_share", self.cache_share, 0, 1, open_below=True)
        for field in fields(self):
            if field.name != "cache_share":
                check_whole(field.name, getattr(self, field.name), 1, or_none=field.name == "cache_tokens")

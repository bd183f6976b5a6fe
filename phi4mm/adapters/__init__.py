"""LoRA adapters that are loaded and unloaded while the model runs."""

from phi4mm.adapters.registry import Adapters

__all__ = ["Adapters"]

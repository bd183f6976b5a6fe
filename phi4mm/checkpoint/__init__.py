"""Checkpoints on disk: load the Microsoft, transformers, Phi-3 and own layouts; save the own one and transformers'."""

from phi4mm.checkpoint.load import Checkpoint, load_checkpoint
from phi4mm.checkpoint.peft_folder import read_adapter, read_adapter_config, save_adapter
from phi4mm.checkpoint.save import save_checkpoint

__all__ = [
    "Checkpoint",
    "load_checkpoint",
    "read_adapter",
    "read_adapter_config",
    "save_adapter",
    "save_checkpoint",
]

"""A hash of the frozen decoder: equal before and after an adapter's training, and checked by a test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from phi4mm.checkpoint.names import is_lora


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors in the order of their names: name, type, shape and bytes of each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else str(tensor.item()).encode())
    return digest.hexdigest()


def decoder_tensors(decoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of a decoder without its adapters, as the checkpoint stores them: bfloat16."""
    return {name: tensor.to(torch.bfloat16) for name, tensor in decoder.state_dict().items() if not is_lora(name)}

"""Optimiser, learning rate and precision, shared by every stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn


def adamw(modules: Iterable[nn.Module], *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what is trainable in ``modules``; only matrices decay."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warm_cosine(step: int, total: int, warmup: int) -> float:
    """The share of the peak learning rate: a linear rise, then half a cosine to 5 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def schedule(optimizer: torch.optim.Optimizer, total: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """``warm_cosine`` for every group of an optimiser; to be stepped after each update."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total, warmup))


def half_precision() -> AbstractContextManager[None]:
    """bfloat16 where it pays: the matrix products of training on a processor that has it."""
    return torch.autocast("cpu", dtype=torch.bfloat16)

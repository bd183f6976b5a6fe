"""How the cores are shared between the decoder and the towers, which run beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from phi4mm.model.phi4mm import Phi4MMModel

_SMALL = 25_000_000  # weights of a model whose products are too small to gain from a second core


@dataclass(frozen=True)
class ThreadPlan:
    """Threads of each operation of the decoder, and of the towers (0: they run between the decoder's steps)."""

    decoder: int
    towers: int


def plan_threads(model: Phi4MMModel, num_threads: int) -> ThreadPlan:
    """On a CPU with several threads the towers run beside the decoder: each with half of the threads where the model is
    small, and otherwise with all, as the operating system then shares the cores between them."""
    if model.device.type != "cpu" or num_threads < 2:
        return ThreadPlan(num_threads, 0)
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL:
        return ThreadPlan(num_threads - num_threads // 2, num_threads // 2)
    return ThreadPlan(num_threads, num_threads)


def tower_thread(plan: ThreadPlan) -> ThreadPoolExecutor | None:
    """A thread for the towers, if they have one of their own."""
    if not plan.towers:
        return None
    return ThreadPoolExecutor(1, "phi4mm-encode", initializer=torch.set_num_threads, initargs=(plan.towers,))

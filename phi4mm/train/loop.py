"""The loop that every stage trains with: it logs, keeps an average of the weights, and goes on where it was killed.

Batches come in rounds. A round's batches depend on its number alone, and the state is written between rounds, so a run
that was killed and started again ends with the same weights as a run left alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from phi4mm.train.files import read_tensors, write_tensors

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")

SECONDS_BETWEEN_STATES = 60.0
LAST_SHARE = 0.05  # of the peak learning rate


@dataclass(frozen=True)
class Pace:
    """How long a stage trains: ``steps`` updates, the first ``warmup`` of them at a rising learning rate.

    ``average`` is the decay of the exponential average of the weights.
    """

    steps: int
    warmup: int
    average: float
    log_every: int


@dataclass(frozen=True)
class StageFolder:
    """Where a stage writes its state and what TensorBoard shows."""

    work: Path
    name: str

    @property
    def state(self) -> Path:
        return self.work / "states" / f"{self.name}.safetensors"

    @property
    def tensorboard(self) -> Path:
        return self.work / "tensorboard" / self.name


def adamw(groups: Iterable[tuple[Iterable[nn.Parameter], float]], *, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over groups of (parameters, peak learning rate); only matrices decay."""
    settings: list[dict[str, Any]] = []
    for parameters, rate in groups:
        listed = list(parameters)
        settings.append({"params": [p for p in listed if p.dim() >= 2], "lr": rate, "weight_decay": weight_decay})
        settings.append({"params": [p for p in listed if p.dim() < 2], "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in settings if group["params"]], betas=(0.9, 0.98))


def warm_cosine(step: int, total: int, warmup: int) -> float:
    """The share of the peak learning rate: a linear rise, then half a cosine to ``LAST_SHARE``."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def half_precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 in the matrix products; the weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def train(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    rounds: Callable[[int, int], Iterator[Batch]],
    loss_of: Callable[[Batch, int], Tensor],
    pace: Pace,
    folder: StageFolder,
    watch: Callable[[], Mapping[str, float]],
) -> None:
    """Train what ``optimizers`` hold, in place; at the end the weights are their exponential average.

    Args:
        module: what holds the weights.
        rounds: the batches of a round, from its number and the step at which it begins.
        loss_of: the loss of a batch at a step.
        folder: where the state is; training goes on from it where there is one.
        watch: figures of ``module`` to log every ``pace.log_every`` steps, by name; it is called with the average in
            place of the weights.
    """
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    average = {name: weight.detach().clone() for name, weight in trained.items()}
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, round_number = _resume(trained, average, optimizers, folder.state)
    if step:
        log.info("%s: goes on from step %d", folder.name, step)
    average_towards = get_ema_multi_avg_fn(pace.average)
    started, saved, losses = time.monotonic(), time.monotonic(), list[float]()
    with SummaryWriter(folder.tensorboard, purge_step=step) as board, _progress(folder.name, pace.steps, step) as bar:
        while step < pace.steps:
            for batch in rounds(round_number, step):
                share = warm_cosine(step, pace.steps, pace.warmup)
                for optimizer, rates in zip(optimizers, peaks, strict=True):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * share
                module.train()
                torch.manual_seed(step)  # of dropout
                loss = loss_of(batch, step)
                loss.backward()
                nn.utils.clip_grad_norm_(trained.values(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                with torch.no_grad():
                    average_towards(list(average.values()), list(trained.values()), step)
                step += 1
                bar.update()
                losses.append(loss.item())
                if step % pace.log_every == 0 or step == pace.steps:
                    module.eval()
                    with _exchanged(trained, average):
                        figures = {"loss": sum(losses) / len(losses), **watch()}
                    losses.clear()
                    for name, value in figures.items():
                        board.add_scalar(name, value, step)
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                    log.info("%s: step %d, %.1f min, %s", folder.name, step, (time.monotonic() - started) / 60, shown)
                if step == pace.steps:
                    break
            round_number += 1
            if step == pace.steps or time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                _save(trained, average, optimizers, step, round_number, folder.state)
                saved = time.monotonic()
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(average[name])


@contextmanager
def _exchanged(trained: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Iterator[None]:
    """The average in place of the weights, for a while."""

    def exchange() -> None:
        for name, weight in trained.items():
            weight.data, average[name].data = average[name].data, weight.data

    exchange()
    try:
        yield
    finally:
        exchange()


def _progress(name: str, steps: int, done: int) -> tqdm[Any]:
    return tqdm(desc=name, total=steps, initial=done, unit="step", disable=None)


def _save(
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    round_number: int,
    path: Path,
) -> None:
    tensors = {f"weights/{name}": weight for name, weight in trained.items()}
    tensors |= {f"average/{name}": weight for name, weight in average.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{index}/{key}": value for key, value in state.items()}
    tensors["place"] = torch.tensor([step, round_number])
    write_tensors(path, tensors)


def _resume(
    trained: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    path: Path,
) -> tuple[int, int]:
    """The step and the round to go on with."""
    if not path.exists():
        return 0, 0
    tensors = read_tensors(path)
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(tensors[f"weights/{name}"])
            average[name].copy_(tensors[f"average/{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer/{number}/"):
                index, key = name.split("/")[2:]
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    step, round_number = tensors["place"].tolist()
    return step, round_number

"""Stage: the text backbone, trained on chat-formatted text alone; from then on it is frozen."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.model.backbone import Backbone
from phi4mm.model.config import BackboneConfig
from phi4mm.train.batches import by_length
from phi4mm.train.schedule import half_precision, schedule
from phi4mm.train.text import Example, TextTasks

log = logging.getLogger(__name__)

IGNORED = -100


@dataclass(frozen=True)
class BackboneOptions:
    """A step is a batch of at most ``tokens`` tokens."""

    steps: int = 3500
    tokens: int = 2048
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    log_every: int = 250


@dataclass(frozen=True)
class TextBatch:
    """Token ids [rows, tokens] and, for each position, the token to be predicted there (or ``IGNORED``)."""

    token_ids: Tensor
    targets: Tensor


def collate_text(examples: Sequence[Example], pad: int) -> TextBatch:
    longest = max(len(example.token_ids) for example in examples)
    token_ids = torch.full((len(examples), longest), pad)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.token_ids)
        token_ids[row, : len(tokens)] = tokens
        targets[row, example.answer_start - 1 : len(tokens) - 1] = tokens[example.answer_start :]
    return TextBatch(token_ids, targets)


def answer_scores(backbone: Backbone, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Scores [answer tokens, vocabulary] and targets [answer tokens] of the positions that count."""
    rows, length = batch.token_ids.shape
    positions = torch.arange(length).expand(rows, -1)
    hidden = backbone(backbone.embed_tokens(batch.token_ids), positions, torch.zeros(rows, dtype=torch.bool))
    counted = batch.targets != IGNORED
    return backbone.logits(hidden[counted]), batch.targets[counted]


def initialise(backbone: Backbone) -> None:
    """Weights that keep the size of what passes through; those of a full-size decoder are too small for this one."""
    for layer in backbone.layers:
        for name, weight in layer.named_parameters():
            if name.endswith("proj.weight"):
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = 2 * len(backbone.layers) if into_residual else 1
                nn.init.normal_(weight, std=(weight.shape[1] * depth) ** -0.5)
    nn.init.normal_(backbone.embed_tokens.weight, std=backbone.config.hidden_size**-0.5)


def train_backbone(config: BackboneConfig, tasks: TextTasks, options: BackboneOptions) -> Backbone:
    """Train a decoder without adapters."""
    torch.manual_seed(0)
    random, generator = Random(0), torch.Generator().manual_seed(0)
    backbone = Backbone(config)
    initialise(backbone)
    matrices = [weight for weight in backbone.layers.parameters() if weight.dim() == 2 and weight.numel()]
    others = [*backbone.embed_tokens.parameters(), *(p for p in backbone.parameters() if p.dim() == 1)]
    optimizers = (
        torch.optim.Muon(
            matrices, lr=options.learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=options.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    )
    schedulers = [schedule(optimizer, options.steps, options.warmup) for optimizer in optimizers]
    judged = [tasks.draw(Random(-number)) for number in range(1, 513)]
    batches = _batches(tasks, options.tokens, config.pad_token_id, random, generator)
    started, losses = time.monotonic(), []
    for step in range(options.steps):
        # Short rows: the plain product is faster in bfloat16 than the fused attention.
        with half_precision(), sdpa_kernel(SDPBackend.MATH):
            scores, targets = answer_scores(backbone, next(batches))
        loss = F.cross_entropy(scores.float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % options.log_every == 0 or step + 1 == options.steps:
            right = ", ".join(f"{task} {100 * share:.0f} %" for task, share in accuracy(backbone, judged).items())
            minutes = (time.monotonic() - started) / 60
            log.info(
                "backbone: step %d, %.1f min, loss %.3f, right answers: %s",
                step + 1, minutes, sum(losses) / len(losses), right,
            )  # fmt: skip
            losses.clear()
    return backbone


@torch.inference_mode()
def accuracy(backbone: Backbone, examples: Sequence[Example]) -> dict[str, float]:
    """Per task, the share of answers of which every token is the likeliest one after those before it."""
    right: dict[str, list[bool]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: example.task):
        scores, targets = answer_scores(backbone, collate_text([example], backbone.config.pad_token_id))
        right[example.task].append(bool((scores.argmax(-1) == targets).all()))
    return {task: sum(found) / len(found) for task, found in right.items()}


def _batches(
    tasks: TextTasks, budget: int, pad: int, random: Random, generator: torch.Generator
) -> Iterator[TextBatch]:
    while True:
        pool = [tasks.draw(random) for _ in range(1024)]
        for group in by_length([len(example.token_ids) for example in pool], budget, generator):
            yield collate_text([pool[index] for index in group], pad)

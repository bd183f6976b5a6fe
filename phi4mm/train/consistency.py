"""Stage: the speech tower once more, on two views of each clip that must agree (CR-CTC, Yao et al. 2024,
arXiv 2410.05101).

Each view is augmented on its own, and beside CTC's loss of both stands the divergence between what the classifier says
of them, moment by moment. It keeps the tower from relying on what one of its few speakers alone does. The last steps
are almost without augmentation, as real clips are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.train.augment import change_pace, vary_batch
from phi4mm.train.batches import SpeechBatch, by_length, collate
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.shards import Shard
from phi4mm.train.tower import WordTower, ctc_loss, word_error_rate


@dataclass(frozen=True)
class ConsistencyOptions:
    """A step is a batch of at most ``frames`` log-mel frames, seen twice."""

    pace: Pace
    learning_rate: float
    strength: float  # of the augmentation
    time_mask: float = 0.12  # share of the frames at most, at full strength
    weight: float = 0.2  # of the divergence
    weight_decay: float = 0.02
    frames: int = 1750


STRONG = ConsistencyOptions(
    Pace(steps=2600, warmup=100, average=0.996, log_every=300), learning_rate=6e-4, strength=0.65
)
WEAK = ConsistencyOptions(Pace(steps=1800, warmup=50, average=0.996, log_every=300), learning_rate=4e-4, strength=0.25)


def two_views(clips: SpeechBatch, generator: torch.Generator, strength: float, time_mask: float) -> SpeechBatch:
    """All clips augmented once, then all of them augmented again; their frames stay where they are."""
    views = [vary_batch(clips.features, generator, strength=strength, time_mask=time_mask) for _ in range(2)]
    return SpeechBatch(torch.cat(views), clips.num_frames.repeat(2), clips.words * 2)


def divergence(scores: Tensor, num_tokens: Tensor) -> Tensor:
    """How far the second half of the clips is from the first: the sum over all tokens of the Kullback-Leibler
    divergence of either from the other, which is taken as fixed.

    Args:
        scores: log-probabilities [2 x clips, tokens, classes].
        num_tokens: of each clip [2 x clips].
    """
    valid = torch.arange(scores.shape[1], device=scores.device) < num_tokens[:, None]
    first, second = (half[inside] for half, inside in zip(scores.chunk(2), valid.chunk(2), strict=True))
    there, back = (
        F.kl_div(one, other.detach(), log_target=True, reduction="sum")
        for one, other in ((first, second), (second, first))
    )
    return there + back


def train_consistency(
    model: WordTower,
    versions: Sequence[Path],
    held_out: Mapping[str, Path],
    options: ConsistencyOptions,
    folder: StageFolder,
) -> None:
    """Train a tower that knows the words already, in place, on the shards ``versions``."""
    device = model.head.weight.device
    watched = {name: list(Shard(path, model.vocabulary)) for name, path in held_out.items()}

    def rounds(number: int, step: int) -> Iterator[SpeechBatch]:
        shard = Shard(versions[number % len(versions)], model.vocabulary)
        generator = torch.Generator().manual_seed(number)
        for group in by_length([len(u.features) for u in shard], options.frames, generator):
            clips = [shard[index] for index in group]
            paced = [replace(c, features=change_pace(c.features, generator, strength=options.strength)) for c in clips]
            yield two_views(collate(paced), generator, options.strength, options.time_mask).to(device)

    def loss_of(batch: SpeechBatch, step: int) -> Tensor:
        with half_precision(device):
            scores, num_tokens = model(batch.features, batch.num_frames)
        num_words = max(1, sum(map(len, batch.words)) // 2)
        apart = divergence(scores, num_tokens) / num_words
        return ctc_loss(model, scores, num_tokens, batch.words) + options.weight * apart

    def watch() -> dict[str, float]:
        return {f"WER/{name}": 100 * word_error_rate(model, clips) for name, clips in watched.items()}

    optimizer = adamw([(model.parameters(), options.learning_rate)], weight_decay=options.weight_decay)
    train(model, [optimizer], rounds, loss_of, options.pace, folder, watch)

"""Stage: the speech tower once more, on two views of each clip that must agree (CR-CTC, Yao et al. 2024,
arXiv 2410.05101).

Each view is augmented on its own, and beside CTC's loss of both stands the divergence between what the classifier says
of them, moment by moment. It keeps the tower from relying on what one of its few speakers alone does; so does ordinary
read speech, a batch of which stands beside each. The last steps are augmented little: clips are nearly as real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.train.augment import change_pace, vary_batch
from phi4mm.train.batches import SpeechBatch, by_length, collate
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.read_speech import read_batches
from phi4mm.train.shards import Shard
from phi4mm.train.tower import WordTower, ctc_loss, word_error_rate


@dataclass(frozen=True)
class ConsistencyOptions:
    """A step is a batch of at most ``frames`` log-mel frames, seen twice, and one of read speech, seen once."""

    pace: Pace
    learning_rate: float
    strength: float  # of the augmentation
    time_mask: float = 0.12  # share of the frames at most, at full strength
    share: float = 0.35  # of the utterances of a version in a round, beside all of its single numbers
    weight: float = 0.2  # of the divergence
    read_weight: float = 0.5  # of read speech
    weight_decay: float = 0.02
    frames: int = 1750


STRONG = ConsistencyOptions(
    Pace(steps=6000, warmup=150, average=0.996, log_every=800), learning_rate=8e-4, strength=0.65
)
WEAK = ConsistencyOptions(Pace(steps=4500, warmup=150, average=0.999, log_every=300), learning_rate=4e-4, strength=0.3)


@dataclass(frozen=True)
class ConsistencyShards:
    """Versions of everything, of single numbers, and of read speech in pieces."""

    everything: Sequence[Path]
    numbers: Sequence[Path]
    read: Sequence[Path]


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
    reader: WordTower,
    shards: ConsistencyShards,
    held_out: Mapping[str, Path],
    options: ConsistencyOptions,
    folder: StageFolder,
) -> None:
    """Train a tower that knows the words already, in place.

    Args:
        model: the tower with the classifier of the domain's words.
        reader: the same tower with a classifier of the pieces of read speech.
        held_out: shards that are watched.
    """
    device = model.head.weight.device
    watched = {name: list(Shard(path, model.vocabulary)) for name, path in held_out.items()}

    def rounds(number: int, step: int) -> Iterator[tuple[SpeechBatch, SpeechBatch]]:
        generator = torch.Generator().manual_seed(number)
        everything, numbers = (
            Shard(paths[number % len(paths)], model.vocabulary) for paths in (shards.everything, shards.numbers)
        )
        some = (torch.rand(len(everything), generator=generator) < options.share).nonzero().flatten().tolist()
        clips = [*(everything[index] for index in some), *numbers]
        beside = read_batches(shards.read, reader.vocabulary, options.frames, options.strength, number, device)
        for group in by_length([len(clip.features) for clip in clips], options.frames, generator):
            paced = [
                replace(clip, features=change_pace(clip.features, generator, strength=options.strength))
                for clip in (clips[index] for index in group)
            ]
            yield two_views(collate(paced), generator, options.strength, options.time_mask).to(device), next(beside)

    def loss_of(batches: tuple[SpeechBatch, SpeechBatch], step: int) -> Tensor:
        batch, beside = batches
        with half_precision(device):
            scores, num_tokens = model(batch.features, batch.num_frames)
            read_scores, num_read = reader(beside.features, beside.num_frames)
        num_words = max(1, sum(map(len, batch.words)) // 2)
        apart = divergence(scores, num_tokens) / num_words
        of_domain = ctc_loss(model, scores, num_tokens, batch.words) + options.weight * apart
        return of_domain + options.read_weight * ctc_loss(reader, read_scores, num_read, beside.words)

    def watch() -> dict[str, float]:
        return {f"WER/{name}": 100 * word_error_rate(model, clips) for name, clips in watched.items()}

    both = nn.ModuleList([model, reader])
    optimizer = adamw([(both.parameters(), options.learning_rate)], weight_decay=options.weight_decay)
    train(both, [optimizer], rounds, loss_of, options.pace, folder, watch)

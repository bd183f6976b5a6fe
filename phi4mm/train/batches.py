"""Batches of utterances of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi4mm.train.shards import Utterance


@dataclass(frozen=True)
class SpeechBatch:
    """Log-mels [clips, frames, mels], valid frames [clips], and each clip's words."""

    features: Tensor
    num_frames: Tensor
    words: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device) -> SpeechBatch:
        return SpeechBatch(self.features.to(device), self.num_frames.to(device), self.words)


def collate(utterances: Sequence[Utterance]) -> SpeechBatch:
    num_frames = torch.tensor([len(utterance.features) for utterance in utterances])
    features = torch.zeros(len(utterances), int(num_frames.max()), utterances[0].features.shape[1])
    for row, utterance in zip(features, utterances, strict=True):
        row[: len(utterance.features)] = utterance.features
    return SpeechBatch(features, num_frames, tuple(utterance.words for utterance in utterances))


def by_length(lengths: Sequence[int], budget: int, generator: torch.Generator | None = None) -> Iterator[list[int]]:
    """Indices in groups whose padded length is at most ``budget``, all of a group about equally long.

    Args:
        lengths: of each item; 0 leaves it out.
        budget: the most that ``items x longest`` may be; a longer item goes alone.
        generator: for the order of the groups and of what is almost equally long; ``None`` for longest first.
    """
    jitter = torch.ones(len(lengths)) if generator is None else 1 + 0.1 * torch.rand(len(lengths), generator=generator)
    order = (torch.tensor(lengths) * jitter).sort(descending=True).indices.tolist()
    groups: list[list[int]] = []
    longest = 0
    for index in order:
        if not lengths[index]:
            continue
        longest = max(longest, lengths[index])
        if not groups or longest * (len(groups[-1]) + 1) > budget:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    places = range(len(groups)) if generator is None else torch.randperm(len(groups), generator=generator).tolist()
    return (groups[place] for place in places)

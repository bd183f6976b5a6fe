"""Ordinary read speech beside the domain's: many more people than FSDD and AN4 have.

Most of its words are none of the domain's, so its texts are cut into pieces (BPE, Sennrich et al. 2016), which a second
classifier of the speech tower names; both classifiers are thrown away for the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

from phi4mm.inputs.audio import load_audio, log_mel
from phi4mm.train.augment import vary
from phi4mm.train.batches import SpeechBatch
from phi4mm.train.data import Clip
from phi4mm.train.files import replaced
from phi4mm.train.shards import Shard, Utterance, write_shard
from phi4mm.train.tower import varied_batches

NUM_PIECES = 300


class Pieces:
    """A cutter of texts into pieces that were frequent in some texts."""

    def __init__(self, file: Path) -> None:
        self.cutter = Tokenizer.from_file(str(file))
        self.vocabulary = tuple(sorted(self.cutter.get_vocab()))

    def of(self, words: Sequence[str]) -> tuple[str, ...]:
        """The pieces of a sentence; what begins a word starts with a low line (U+2581)."""
        return tuple(self.cutter.encode(" ".join(words)).tokens)


def train_pieces(clips: Sequence[Clip], file: Path) -> None:
    """Write a ``tokenizer.json`` of ``NUM_PIECES`` pieces of what the clips say."""
    cutter = Tokenizer(models.BPE())
    cutter.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=NUM_PIECES, show_progress=False)
    cutter.train_from_iterator([" ".join(clip.words) for clip in clips], trainer)
    with replaced(file) as part:
        cutter.save(str(part))


def write_read_versions(paths: Sequence[Path], clips: Sequence[Clip], pieces: Pieces) -> None:
    """In each of ``paths`` one random version of every clip."""
    for path in paths:
        if path.exists():
            continue
        random = np.random.default_rng(list(path.name.encode()))
        write_shard(
            path,
            [
                Utterance(log_mel(vary(load_audio(clip.path), random)).half(), pieces.of(clip.words))
                for clip in tqdm(clips, desc=f"read speech: {path.name}", disable=None)
            ],
            pieces.vocabulary,
        )


def read_batches(
    versions: Sequence[Path], pieces: Sequence[str], frames: int, strength: float, number: int, device: torch.device
) -> Iterator[SpeechBatch]:
    """Augmented batches for round ``number``, without an end."""
    while True:
        shard = Shard(versions[number % len(versions)], pieces)
        yield from varied_batches(shard, [len(u.features) for u in shard], frames, strength, number, device)
        number += 1

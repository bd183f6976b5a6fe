"""Stage: log-mels of random versions of every clip, computed ahead of training, in files of one version each.

A file holds the frames of all its clips one after another (float16), where each clip starts, and its words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from phi4mm.inputs.audio import LOW_SAMPLING_RATE, SAMPLING_RATE, Waveform, load_audio, log_mel
from phi4mm.train.augment import AT_8_KHZ, change_tempo, join, noise, resample, vary
from phi4mm.train.data import Clip
from phi4mm.train.files import read_tensors, write_tensors

MAX_JOINED = 8
NUM_SILENT = 150  # clips of noise without a word in each version
COPIES = {"an4": 2.0, "fsdd": 1.5, "an4 words": 1.5, "sentences": 0.4}  # of a clip in a version; other corpora: one
JOINED_CORPORA = ("fsdd", "an4 words")  # of single words
SINGLE_AT_8_KHZ = 0.75  # share of single numbers

Spoken = tuple[Waveform, tuple[str, ...]]


@dataclass(frozen=True)
class Utterance:
    """Log-mels float16 [frames, mels] and what is said."""

    features: Tensor
    words: tuple[str, ...]


class Shard:
    """A file of utterances, opened."""

    def __init__(self, path: Path, vocabulary: Sequence[str]) -> None:
        tensors = read_tensors(path)
        self.frames, self.words = tensors["frames"], tensors["words"]
        self.frame_starts, self.word_starts = tensors["frame_starts"].tolist(), tensors["word_starts"].tolist()
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.frame_starts) - 1

    def __getitem__(self, index: int) -> Utterance:
        frames = self.frames[self.frame_starts[index] : self.frame_starts[index + 1]]
        words = self.words[self.word_starts[index] : self.word_starts[index + 1]].tolist()
        return Utterance(frames, tuple(self.vocabulary[word] for word in words))

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))


def write_shard(path: Path, utterances: Sequence[Utterance], vocabulary: Sequence[str]) -> None:
    number = {word: index for index, word in enumerate(vocabulary)}
    words = [number[word] for utterance in utterances for word in utterance.words]
    write_tensors(
        path,
        {
            "frames": torch.cat([utterance.features for utterance in utterances]),
            "frame_starts": _starts([len(utterance.features) for utterance in utterances]),
            "words": torch.tensor(words, dtype=torch.int16),
            "word_starts": _starts([len(utterance.words) for utterance in utterances]),
        },
    )


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def vocabulary_of(clips: Sequence[Clip]) -> list[str]:
    """Every word of the clips, sorted."""
    return sorted({word for clip in clips for word in clip.words})


def write_plain(path: Path, clips: Sequence[Clip], vocabulary: Sequence[str]) -> None:
    """The clips as they are, for measuring."""
    utterances = [Utterance(log_mel(load_audio(clip.path)).half(), clip.words) for clip in clips]
    write_shard(path, utterances, vocabulary)


def write_varied(paths: Sequence[Path], clips: Sequence[Clip], vocabulary: Sequence[str]) -> None:
    """In each of ``paths`` one random version of every clip, sequences joined of single digits, and noise."""
    waveforms = [_at_most_16k(load_audio(clip.path)) for clip in tqdm(clips, desc="reading", disable=None)]
    for path in tqdm(paths, desc="versions", disable=None):
        if path.exists():
            continue
        random = np.random.default_rng(list(path.name.encode()))
        spoken = [*_singly(clips, waveforms, random), *_joined(clips, waveforms, random)]
        write_shard(path, [*_varied(spoken, random), *_silent(random)], vocabulary)


def write_single_numbers(paths: Sequence[Path], clips: Sequence[Clip], vocabulary: Sequence[str]) -> None:
    """In each of ``paths`` one random version of every clip of a single number word, most of them at 8 kHz.

    FSDD's few speakers are not native ones; with these the numbers of all others are heard as FSDD is recorded.
    """
    single = [clip for clip in clips if len(clip.words) == 1 and clip.only_numbers]
    spoken = [(_at_most_16k(load_audio(clip.path)), clip.words) for clip in tqdm(single, desc="reading", disable=None)]
    for path in tqdm(paths, desc="versions of single numbers", disable=None):
        if not path.exists():
            random = np.random.default_rng(list(path.name.encode()))
            write_shard(path, _varied(spoken, random, at_8_khz=SINGLE_AT_8_KHZ), vocabulary)


def _varied(spoken: Sequence[Spoken], random: np.random.Generator, *, at_8_khz: float = AT_8_KHZ) -> list[Utterance]:
    return [
        Utterance(change_tempo(log_mel(vary(waveform, random, at_8_khz=at_8_khz)), random).half(), words)
        for waveform, words in spoken
    ]


def _silent(random: np.random.Generator) -> list[Utterance]:
    rates = random.choice([LOW_SAMPLING_RATE, SAMPLING_RATE], NUM_SILENT).tolist()
    return [Utterance(log_mel(Waveform(noise(random, rate), rate)).half(), ()) for rate in rates]


def _at_most_16k(waveform: Waveform) -> Waveform:
    return resample(waveform, min(waveform.sampling_rate, SAMPLING_RATE))


def _singly(clips: Sequence[Clip], waveforms: Sequence[Waveform], random: np.random.Generator) -> list[Spoken]:
    return [
        (waveform, clip.words)
        for clip, waveform in zip(clips, waveforms, strict=True)
        for _ in range(int(COPIES.get(clip.corpus, 1.0) + random.random()))
    ]


def _joined(clips: Sequence[Clip], waveforms: Sequence[Waveform], random: np.random.Generator) -> list[Spoken]:
    """Sequences of single words of one speaker; every word of ``JOINED_CORPORA`` takes part once."""
    by_speaker: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        if clip.corpus in JOINED_CORPORA:
            by_speaker.setdefault(clip.speaker, []).append(index)
    joined: list[Spoken] = []
    for indices in by_speaker.values():
        rate = waveforms[indices[0]].sampling_rate
        left = list(random.permutation(indices))
        while left:
            size = int(random.integers(2, MAX_JOINED + 1))
            taken, left = left[:size], left[size:]
            samples = join([waveforms[index].samples for index in taken], rate, random)
            words = tuple(word for index in taken for word in clips[index].words)
            joined.append((Waveform(samples, rate), words))
    return joined

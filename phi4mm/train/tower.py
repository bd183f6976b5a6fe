"""Stage: the speech tower, taught to name words at the right moment by CTC (Graves et al. 2006).

The classifier on top is thrown away for the checkpoint; the projector stage uses it to see where words are.
Single digits come first: trained on everything at once, CTC stays on its plateau of one frequent word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.config import SpeechConfig
from phi4mm.model.speech import SpeechTower
from phi4mm.train.augment import change_pace, vary_batch
from phi4mm.train.batches import SpeechBatch, by_length, collate
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.shards import Shard, Utterance
from phi4mm.train.words import NUMBER_WORDS

BLANK = 0


@dataclass(frozen=True)
class TowerOptions:
    """How long and how fast; a step is a batch of at most ``frames`` log-mel frames (10 ms each)."""

    pace: Pace = Pace(steps=13000, warmup=100, average=0.998, log_every=500)
    single_steps: int = 500  # about so many, on single words
    number_steps: int = 2000  # until then, on what holds only numbers
    strength: float = 0.65  # of the augmentation of batches, from ``full_strength_steps`` on
    full_strength_steps: int = 5500
    frames: int = 3500
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.02


class WordTower(nn.Module):
    """The tower with a linear classifier of words on each of its tokens; class 0 is CTC's blank.

    Args:
        tower: another classifier may use it too.
        config: its own.
        vocabulary: of the classifier.
    """

    def __init__(self, tower: SpeechTower, config: SpeechConfig, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(config.hidden_size, len(vocabulary) + 1)
        self.vocabulary = tuple(vocabulary)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [clips, tokens, 1 + words] and valid tokens [clips]."""
        encoded, num_tokens = self.tower(features, num_frames)
        return self.head(encoded).float().log_softmax(-1), num_tokens


def initialise(tower: SpeechTower) -> None:
    """Let the strided convolutions keep the size of what passes through (He et al. 2015); smaller weights starve what
    follows of signal, and training stays for thousands of steps on its plateau."""
    for stage in tower.subsampling.stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)


def measure_features(tower: SpeechTower, shard: Shard) -> None:
    """Set the tower's mean and inverse standard deviation to those of a shard's log-mels."""
    frames = shard.frames[:: max(1, len(shard.frames) // 100_000)].float()
    tower.mean.copy_(frames.mean(0))
    tower.inverse_std.copy_(1 / frames.std(0).clamp(min=1e-2))


def ctc_loss(model: WordTower, scores: Tensor, num_tokens: Tensor, words: Sequence[Sequence[str]]) -> Tensor:
    """Mean over the clips of the loss per word, from what ``model`` says of them."""
    number = {word: index + 1 for index, word in enumerate(model.vocabulary)}
    targets = torch.tensor([number[word] for clip in words for word in clip], device=scores.device)
    lengths = torch.tensor([len(clip) for clip in words], device=scores.device)
    return F.ctc_loss(scores.transpose(0, 1), targets, num_tokens, lengths, blank=BLANK, zero_infinity=True)


def single_word_loss(model: WordTower, batch: SpeechBatch) -> Tensor:
    """Of clips of one word each: cross-entropy of the mean score over a clip. It sets the tower going where CTC, which
    must find out where the word is as well, stays on its plateau."""
    number = {word: index + 1 for index, word in enumerate(model.vocabulary)}
    targets = torch.tensor([number[words[0]] for words in batch.words], device=batch.features.device)
    encoded, num_tokens = model.tower(batch.features, batch.num_frames)
    inside = torch.arange(encoded.shape[1], device=encoded.device) < num_tokens[:, None]
    pooled = (encoded * inside.unsqueeze(-1)).sum(1) / num_tokens[:, None]
    return F.cross_entropy(model.head(pooled).float(), targets)


@torch.inference_mode()
def spoken_words(model: WordTower, batch: SpeechBatch) -> list[tuple[str, ...]]:
    """The best path of each clip, collapsed."""
    scores, num_tokens = model(batch.features, batch.num_frames)
    said = []
    for row, length in zip(scores.argmax(-1), num_tokens.tolist(), strict=True):
        path = row[:length].unique_consecutive().tolist()
        said.append(tuple(model.vocabulary[index - 1] for index in path if index != BLANK))
    return said


def word_error_rate(model: WordTower, utterances: Sequence[Utterance], *, frames: int = 12000) -> float:
    """Over all the utterances, as they are."""
    references, hypotheses = [], []
    device = model.head.weight.device
    for group in by_length([len(utterance.features) for utterance in utterances], frames):
        batch = collate([utterances[index] for index in group]).to(device)
        references += [" ".join(words) for words in batch.words]
        hypotheses += [" ".join(words) for words in spoken_words(model, batch)]
    return jiwer.wer(references, hypotheses)


def train_tower(
    config: SpeechConfig,
    versions: Sequence[Path],
    held_out: Mapping[str, Path],
    vocabulary: Sequence[str],
    options: TowerOptions,
    folder: StageFolder,
    device: torch.device,
) -> WordTower:
    """Train on the shards ``versions``, one after another, over and over."""
    torch.manual_seed(0)
    model = WordTower(SpeechTower(config), config, vocabulary)
    initialise(model.tower)
    measure_features(model.tower, Shard(versions[0], vocabulary))
    model.to(device)
    watched = {name: list(Shard(path, vocabulary)) for name, path in held_out.items()}

    def rounds(number: int, step: int) -> Iterator[SpeechBatch]:
        stage = 0 if step < options.single_steps else 1 if step < options.number_steps else 2
        ramp = (step - options.single_steps) / (options.full_strength_steps - options.single_steps)
        strength = options.strength * min(1.0, max(0.0, ramp))
        shard = Shard(versions[number % len(versions)], vocabulary)
        lengths = [len(u.features) if _wanted(u.words, stage) else 0 for u in shard]
        return varied_batches(shard, lengths, options.frames, strength, number, device)

    def loss_of(batch: SpeechBatch, step: int) -> Tensor:
        single = all(len(words) == 1 for words in batch.words) and step < options.number_steps
        with half_precision(device):
            if single:
                return single_word_loss(model, batch)
            scores, num_tokens = model(batch.features, batch.num_frames)
            return ctc_loss(model, scores, num_tokens, batch.words)

    def watch() -> dict[str, float]:
        return {f"WER/{name}": 100 * word_error_rate(model, clips) for name, clips in watched.items()}

    train(
        model,
        [adamw([(model.parameters(), options.learning_rate)], weight_decay=options.weight_decay)],
        rounds,
        loss_of,
        options.pace,
        folder,
        watch,
    )
    return model


def varied_batches(
    shard: Shard, lengths: Sequence[int], frames: int, strength: float, seed: int, device: torch.device
) -> Iterator[SpeechBatch]:
    """The utterances of a shard with a length over 0, augmented, in random batches of ``frames`` frames."""
    generator = torch.Generator().manual_seed(seed)
    for group in by_length(lengths, frames, generator):
        clips = [shard[index] for index in group]
        batch = collate(
            [replace(clip, features=change_pace(clip.features, generator, strength=strength)) for clip in clips]
        )
        varied = vary_batch(batch.features, generator, strength=strength)
        yield SpeechBatch(varied, batch.num_frames, batch.words).to(device)


def _wanted(words: Sequence[str], stage: int) -> bool:
    """Stage 0: one number word; 1: number words; 2: anything."""
    return stage == 2 or (bool(words) and set(words) <= set(NUMBER_WORDS) and (stage == 1 or len(words) == 1))

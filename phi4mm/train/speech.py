"""Stage: the audio projector and the speech adapter, through the frozen backbone.

First the projector learns to say in embeddings what the tower's classifier says in words (a word's embedding where a
word is, that of ``SILENCE`` elsewhere): the frozen backbone can read that already. Then projector and adapter, and
the tower at a lower learning rate, learn to answer, from the loss of the answers' tokens alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from phi4mm.checkpoint.names import is_lora
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import AudioBatch, Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Modality
from phi4mm.train.augment import vary_batch
from phi4mm.train.backbone import IGNORED
from phi4mm.train.batches import SpeechBatch, by_length, collate
from phi4mm.train.schedule import half_precision, schedule
from phi4mm.train.shards import Shard
from phi4mm.train.text import SILENCE, asked_of_digits, write_down
from phi4mm.train.tower import WordTower
from phi4mm.train.words import NUMBER_WORDS

log = logging.getLogger(__name__)

PROJECTOR = "speech"


@dataclass(frozen=True)
class SpeechOptions:
    """A step is a batch of at most ``frames`` log-mel frames."""

    naming_steps: int = 300
    naming_learning_rate: float = 2e-3
    steps: int = 3000
    frames: int = 3500
    learning_rate: float = 1e-3
    tower_learning_rate: float = 5e-4
    warmup: int = 50
    strength: float = 0.7  # of the augmentation
    other_share: float = 0.3  # of the clips that hold more than numbers
    average: float = 0.99  # of the weights, exponential: single steps swing
    asked: float = 0.1  # share of digit clips with a question instead of "transcribe"
    log_every: int = 250


def unfreeze_speech(model: Phi4MMModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Leave only the adapters' matrices, the speech projector and the tower trainable.

    The adapters are stacked, but a batch of speech rows reads only the speech adapter's slice, so the others' gradient
    is zero; without weight decay they stay as they are.

    Returns:
        The parameters of adapters and projector, and those of the tower.
    """
    assert model.speech is not None
    model.requires_grad_(False)
    adapters = [weight for name, weight in model.backbone.named_parameters() if is_lora(name)]
    parameters = [*adapters, *model.speech.projectors[PROJECTOR].parameters()]
    tower = list(model.speech.tower.parameters())
    for parameter in (*parameters, *tower):
        parameter.requires_grad_(True)
    return parameters, tower


def name_the_words(
    model: Phi4MMModel,
    words: WordTower,
    versions: Sequence[Path],
    tokenizer: Tokenizer,
    options: SpeechOptions,
) -> None:
    """Regress the projector to the embeddings that the classifier expects, weighted with its probabilities."""
    assert model.speech is not None
    projector = model.speech.projectors[PROJECTOR]
    names = [SILENCE, *(f" {word}" for word in words.vocabulary)]
    first_tokens = torch.tensor([tokenizer.encode(name)[0] for name in names])
    embeddings = model.backbone.embed_tokens.weight.detach()[first_tokens].float()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=options.naming_learning_rate, weight_decay=0.0)
    scheduler = schedule(optimizer, options.naming_steps, options.warmup)
    batches = speech_batches(versions, words.vocabulary, options)
    for step in range(options.naming_steps):
        batch = next(batches)
        with torch.no_grad(), half_precision():
            encoded, num_tokens = words.tower(batch.features, batch.num_frames)
            said = words.head(encoded).float().softmax(-1)
        valid = torch.arange(encoded.shape[1]) < num_tokens[:, None]
        predicted = projector(encoded[valid].float())
        loss = F.mse_loss(predicted, said[valid] @ embeddings) / embeddings.var()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % options.log_every == 0 or step + 1 == options.naming_steps:
            log.info("projector: step %d, error %.3f of the embeddings' variance", step + 1, loss.item())


def train_speech(
    model: Phi4MMModel,
    versions: Sequence[Path],
    vocabulary: Sequence[str],
    tokenizer: Tokenizer,
    options: SpeechOptions,
    watch: Callable[[Phi4MMModel], str],
) -> None:
    """Train the projector, the speech adapter and, gently, the tower in place; what is left is their average.

    Args:
        watch: what to log of the model now and then.
    """
    parameters, tower = unfreeze_speech(model)
    groups: list[dict[str, Any]] = [{"params": parameters}, {"params": tower, "lr": options.tower_learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    scheduler = schedule(optimizer, options.steps, options.warmup)
    random = Random(0)
    batches = speech_batches(versions, vocabulary, options)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.average))
    averaged = cast(Phi4MMModel, average.module)
    started, losses = time.monotonic(), []
    for step in range(options.steps):
        batch, targets = conversation(model, tokenizer, next(batches), random, options)
        with half_precision(), sdpa_kernel(SDPBackend.MATH):
            loss = answer_loss(model, batch, targets)
        loss.backward()
        nn.utils.clip_grad_norm_((*parameters, *tower), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        losses.append(loss.item())
        if (step + 1) % options.log_every == 0 or step + 1 == options.steps:
            minutes = (time.monotonic() - started) / 60
            mean = sum(losses) / len(losses)
            log.info("speech: step %d, %.1f min, loss %.4f, %s", step + 1, minutes, mean, watch(averaged))
            losses.clear()
    model.load_state_dict(averaged.state_dict())


def speech_batches(
    versions: Sequence[Path], vocabulary: Sequence[str], options: SpeechOptions
) -> Iterator[SpeechBatch]:
    """Endless, augmented."""
    generator = torch.Generator().manual_seed(1)
    while True:
        for path in versions:
            shard = Shard(path, vocabulary)
            drawn = torch.rand(len(shard), generator=generator).tolist()
            lengths = [
                len(u.features) if set(u.words) <= set(NUMBER_WORDS) or draw < options.other_share else 0
                for u, draw in zip(shard, drawn, strict=True)
            ]
            for group in by_length(lengths, options.frames, generator):
                batch = collate([shard[index] for index in group])
                varied = vary_batch(batch.features, generator, strength=options.strength)
                yield SpeechBatch(varied, batch.num_frames, batch.words)


def conversation(
    model: Phi4MMModel, tokenizer: Tokenizer, speech: SpeechBatch, random: Random, options: SpeechOptions
) -> tuple[Batch, Tensor]:
    """One turn about each clip.

    Returns:
        The batch, and for each of its positions [rows, tokens] the token to be predicted there (or ``IGNORED``).
    """
    config = model.config
    assert config.speech is not None
    rows, targets = [], []
    for words, num_frames in zip(speech.words, speech.num_frames.tolist(), strict=True):
        asked = asked_of_digits(words, random) if random.random() < options.asked else None
        question, answer = asked or (write_down(random), " ".join(words))
        prompt = [
            tokenizer.control("<|user|>"),
            *[config.speech.audio_token_id] * config.speech.num_tokens(num_frames),
            *tokenizer.encode(question),
            tokenizer.control("<|end|>"),
            tokenizer.control("<|assistant|>"),
        ]
        answer_ids = [*tokenizer.encode(answer), tokenizer.control("<|end|>")]
        rows.append(torch.tensor(prompt + answer_ids[:-1]))
        targets.append(torch.tensor([IGNORED] * (len(prompt) - 1) + answer_ids))
    route = model.router.route(Modality.AUDIO)
    batch = Batch(
        token_ids=pad_sequence(rows, batch_first=True, padding_value=config.backbone.pad_token_id),
        lengths=torch.tensor([len(row) for row in rows]),
        routes=(route,) * len(rows),
        audios=AudioBatch(speech.features, speech.num_frames, tuple(range(len(rows)))),
    )
    return batch, pad_sequence(targets, batch_first=True, padding_value=IGNORED)


def answer_loss(model: Phi4MMModel, batch: Batch, targets: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens."""
    num_rows, num_tokens = batch.token_ids.shape
    positions = torch.arange(num_tokens).expand(num_rows, -1)
    hidden = model.backbone(
        model.embed(batch), positions, model.long_rows(batch.lengths), gate=model.gate(batch.routes)
    )
    counted = targets != IGNORED
    return F.cross_entropy(model.backbone.logits(hidden[counted]).float(), targets[counted])

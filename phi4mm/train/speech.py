"""Stage: the audio projector and the speech adapter, through the frozen decoder.

First the projector learns to say in embeddings what the tower's classifier says in words (a word's embedding where a
word is, that of ``SILENCE`` elsewhere): the frozen decoder can read that already. Then projector and adapter, with the
tower frozen, learn to answer; the projector keeps to what it said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.checkpoint.names import is_lora
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import AudioBatch, Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import route
from phi4mm.train.answers import Answers, Turn, answer_loss, collate_turns, word_embeddings
from phi4mm.train.batches import SpeechBatch
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.shards import Shard
from phi4mm.train.text import asked_of_digits, write_down
from phi4mm.train.tower import BLANK, WordTower, varied_batches
from phi4mm.train.words import NUMBER_WORDS
from phi4mm.types import Modality

PROJECTOR = "speech"


@dataclass(frozen=True)
class SpeechOptions:
    """A step is a batch of at most ``frames`` log-mel frames."""

    naming: Pace = Pace(steps=1600, warmup=50, average=0.99, log_every=400)
    naming_learning_rate: float = 3e-3
    answering: Pace = Pace(steps=2800, warmup=100, average=0.995, log_every=400)
    named: float = 0.5  # weight of the naming loss beside that of the answers
    learning_rate: float = 1e-3
    frames: int = 3500
    strength: float = 0.4  # of the augmentation
    other_share: float = 0.6  # of the clips that hold more than numbers
    asked: float = 0.1  # share of digit clips with a question instead of "transcribe"


def unfreeze_speech(model: Phi4MMModel) -> list[nn.Parameter]:
    """Leave only the speech adapter and the speech projector trainable, and return their parameters."""
    assert model.speech is not None
    model.requires_grad_(False)
    adapter = [weight for name, weight in model.decoder.named_parameters() if is_lora(name, "speech")]
    parameters = [*adapter, *model.speech.projectors[PROJECTOR].parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


class Naming:
    """What a projector is to say: the embeddings that the tower's classifier expects, weighted with its probabilities.

    Args:
        model: its speech tower is that of ``words``; its embeddings are frozen.
        words: frozen.
        projector: its name.
    """

    def __init__(self, model: Phi4MMModel, words: WordTower, tokenizer: Tokenizer, projector: str) -> None:
        assert model.speech is not None
        self.projector = model.speech.projectors[projector]
        self.words = words
        self.embeddings = word_embeddings(model, tokenizer, words.vocabulary)

    def loss(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """Of log-mels [clips, frames, mels]: the mean squared error over the variance of the embeddings, once of words
        and once of silence. Most tokens are silence; together, that would be all that is learnt well."""
        with torch.no_grad(), half_precision(self.embeddings.device):
            encoded, num_tokens = self.words.tower(features, num_frames)
            said = self.words.head(encoded).float().softmax(-1)
        valid = torch.arange(encoded.shape[1], device=encoded.device) < num_tokens[:, None]
        said = said[valid]
        error = (self.projector(encoded[valid].float()) - said @ self.embeddings).square().mean(-1)
        silent = said[:, BLANK]
        of_silence, of_words = ((error * share).sum() / share.sum() for share in (silent, 1 - silent))
        return (of_silence + of_words) / self.embeddings.var()

    def learn(
        self,
        rounds: Callable[[int, int], Iterator[SpeechBatch]],
        pace: Pace,
        learning_rate: float,
        folder: StageFolder,
    ) -> None:
        """Train the projector alone."""
        self.projector.requires_grad_(True)
        optimizer = adamw([(self.projector.parameters(), learning_rate)])

        def loss_of(batch: SpeechBatch, step: int) -> Tensor:
            return self.loss(batch.features, batch.num_frames)

        train(self.projector, [optimizer], rounds, loss_of, pace, folder, dict)


def train_speech(
    model: Phi4MMModel,
    naming: Naming,
    versions: Sequence[Path],
    tokenizer: Tokenizer,
    options: SpeechOptions,
    folder: StageFolder,
    watch: Callable[[Phi4MMModel], Mapping[str, float]],
) -> None:
    """Train the projector and the speech adapter in place.

    Args:
        naming: what the projector said before, of this model.
        watch: figures of the model to log now and then, by name.
    """
    parameters = unfreeze_speech(model)

    def rounds(number: int, step: int) -> Iterator[tuple[Batch, Answers]]:
        random = Random(number)
        for batch in speech_batches(versions, naming.words.vocabulary, options, number, model.device):
            yield ask(model, tokenizer, batch, random, options)

    def loss_of(asked: tuple[Batch, Answers], step: int) -> Tensor:
        batch, answers = asked
        with half_precision(model.device), sdpa_kernel(SDPBackend.MATH):
            loss = answer_loss(model, model.embed(batch), answers, batch.routes[0])
        assert batch.audios is not None
        return loss + options.named * naming.loss(batch.audios.features, batch.audios.num_frames)

    train(
        model,
        [adamw([(parameters, options.learning_rate)])],
        rounds,
        loss_of,
        options.answering,
        folder,
        lambda: watch(model),
    )


def speech_batches(
    versions: Sequence[Path], vocabulary: Sequence[str], options: SpeechOptions, number: int, device: torch.device
) -> Iterator[SpeechBatch]:
    """Of round ``number``: a shard's numbers and a share of its other utterances, augmented."""
    shard = Shard(versions[number % len(versions)], vocabulary)
    random = Random(number)
    lengths = [
        len(u.features) if set(u.words) <= set(NUMBER_WORDS) or random.random() < options.other_share else 0
        for u in shard
    ]
    return varied_batches(shard, lengths, options.frames, options.strength, number, device)


def ask(
    model: Phi4MMModel, tokenizer: Tokenizer, speech: SpeechBatch, random: Random, options: SpeechOptions
) -> tuple[Batch, Answers]:
    """One turn about each clip."""
    config = model.config
    assert config.speech is not None
    turns = []
    for words, num_frames in zip(speech.words, speech.num_frames.tolist(), strict=True):
        asked = asked_of_digits(words, random) if random.random() < options.asked else None
        question, answer = asked or (write_down(random), " ".join(words))
        turns.append(Turn([config.speech.audio_token_id] * config.speech.num_tokens(num_frames), question, answer))
    answers = collate_turns(turns, tokenizer, config.decoder.pad_token_id).to(model.device)
    audios = AudioBatch(speech.features, speech.num_frames, tuple(range(len(turns))))
    routes = (route(Modality.AUDIO, "auto", model.adapters),) * len(turns)
    return Batch(answers.token_ids, answers.lengths, routes, audios=audios), answers

"""Stage: the projector of audio beside an image, for questions asked aloud about pictures; all else is frozen.

As with speech alone, it first learns to say in embeddings what the tower's classifier says in words, which the vision
adapter has learnt to read (``TextTasks.heard``), and keeps to that while it learns from answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import AudioBatch, Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import route
from phi4mm.train.answers import Answers, Turn, answer_loss, collate_turns
from phi4mm.train.bank import PictureBank, collate_images, vary_images
from phi4mm.train.batches import SpeechBatch
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.shards import Shard
from phi4mm.train.speech import PROJECTOR, Naming
from phi4mm.train.tower import WordTower, varied_batches
from phi4mm.types import Modality

VISION_PROJECTOR = "vision"

Asked = dict[tuple[str, ...], list[tuple[PictureBank, int, str]]]  # of a question's words: pictures and their answers


@dataclass(frozen=True)
class SpokenOptions:
    """A step is a batch of at most ``frames`` log-mel frames, each clip about a picture of its own."""

    naming: Pace = Pace(steps=1600, warmup=50, average=0.99, log_every=400)
    naming_learning_rate: float = 3e-3
    answering: Pace = Pace(steps=600, warmup=30, average=0.98, log_every=150)
    learning_rate: float = 5e-4
    named: float = 1.0  # weight of the naming loss beside that of the answers
    frames: int = 2000
    strength: float = 0.65  # of the augmentation of the clips
    jitter: float = 1.0  # of the pictures


def pictures_by_question(banks: Sequence[PictureBank]) -> Asked:
    """Which pictures each question can be asked of, and what the answer is."""
    asked: Asked = {}
    for bank in banks:
        for index, questions in enumerate(bank.questions):
            for question in questions:
                words = tuple(question.text.rstrip("?").split())
                asked.setdefault(words, []).append((bank, index, question.answer))
    return asked


def train_spoken(
    model: Phi4MMModel,
    words: WordTower,
    versions: Sequence[Path],
    banks: Sequence[PictureBank],
    tokenizer: Tokenizer,
    options: SpokenOptions,
    folders: tuple[StageFolder, StageFolder],
    watch: Callable[[Phi4MMModel], Mapping[str, float]],
) -> None:
    """Train the projector, which starts as a copy of the one for audio alone, in place.

    Args:
        words: the model's speech tower with its classifier.
        versions: shards of speech; only their utterances that are questions about pictures are used.
        folders: of the naming and of the answering.
    """
    assert model.speech is not None
    projectors = model.speech.projectors
    projectors[VISION_PROJECTOR].load_state_dict(projectors[PROJECTOR].state_dict())
    model.requires_grad_(False)
    asked = pictures_by_question(banks)
    naming = Naming(model, words, tokenizer, VISION_PROJECTOR)

    def spoken(number: int, step: int) -> Iterator[SpeechBatch]:
        shard = Shard(versions[number % len(versions)], words.vocabulary)
        lengths = [len(u.features) if u.words in asked else 0 for u in shard]
        return varied_batches(shard, lengths, options.frames, options.strength, number, model.device)

    def rounds(number: int, step: int) -> Iterator[tuple[Batch, Answers]]:
        random, generator = Random(number), torch.Generator().manual_seed(number)
        for speech in spoken(number, step):
            yield ask_aloud(model, speech, asked, tokenizer, random, generator, options.jitter)

    def loss_of(pair: tuple[Batch, Answers], step: int) -> Tensor:
        batch, answers = pair
        with half_precision(model.device), sdpa_kernel(SDPBackend.MATH):
            loss = answer_loss(model, model.embed(batch), answers, batch.routes[0])
        assert batch.audios is not None
        return loss + options.named * naming.loss(batch.audios.features, batch.audios.num_frames)

    naming.learn(spoken, options.naming, options.naming_learning_rate, folders[0])
    optimizer = adamw([(naming.projector.parameters(), options.learning_rate)])
    train(model, [optimizer], rounds, loss_of, options.answering, folders[1], lambda: watch(model))


def ask_aloud(
    model: Phi4MMModel,
    speech: SpeechBatch,
    asked: Asked,
    tokenizer: Tokenizer,
    random: Random,
    generator: torch.Generator,
    jitter: float,
) -> tuple[Batch, Answers]:
    """Each clip's question, about a random picture of which it can be asked; no text beside it."""
    config = model.config
    assert config.vision is not None
    assert config.speech is not None
    images, turns = [], []
    for words, num_frames in zip(speech.words, speech.num_frames.tolist(), strict=True):
        by_answer: dict[str, list[tuple[PictureBank, int]]] = {}
        for bank, index, answer in random.choices(asked[words], k=8):
            by_answer.setdefault(answer, []).append((bank, index))
        answer = random.choice(sorted(by_answer))  # else "is there no teal shape?" would almost always be "yes"
        bank, index = random.choice(by_answer[answer])
        image = bank[index]
        images.append(image)
        media = [config.vision.image_token_id] * image.num_tokens
        media += [config.speech.audio_token_id] * config.speech.num_tokens(num_frames)
        turns.append(Turn(media, "", answer))
    answers = collate_turns(turns, tokenizer, config.decoder.pad_token_id).to(model.device)
    batch = Batch(
        answers.token_ids,
        answers.lengths,
        (route(Modality.IMAGE_AUDIO, "auto", model.adapters),) * len(turns),
        images=collate_images(vary_images(images, generator, jitter)),
        audios=AudioBatch(speech.features, speech.num_frames, tuple(range(len(turns)))),
    )
    return batch.to(model.device), answers

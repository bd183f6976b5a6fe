"""Stage: the vision tower, its projector and the vision adapter, through the frozen decoder.

After ``picture_words``: all three learn to answer questions, from the loss of the answers' tokens alone. A share of the
questions comes as the decoder's stand-in for speech, so that a heard question can be answered later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.checkpoint.names import is_lora
from phi4mm.model.batch import ImageBatch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import route
from phi4mm.model.vision import Vision
from phi4mm.train.answers import Answers, Turn, answer_loss, collate_turns
from phi4mm.train.bank import PictureBank, StoredImage, collate_images, vary_images
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.pictures import Question
from phi4mm.train.text import TextTasks, capitalised
from phi4mm.types import Modality

Mixture = Sequence[tuple[PictureBank, int]]  # banks, and how many pictures of each a round holds


@dataclass(frozen=True)
class VisionOptions:
    """A step is ``pictures`` pictures with ``questions`` each."""

    pace: Pace = Pace(steps=5000, warmup=100, average=0.995, log_every=250)
    pictures: int = 8
    questions: int = 4
    learning_rate: float = 1e-3
    tower_learning_rate: float = 3e-4
    weight_decay: float = 0.02
    heard: float = 0.25  # share of the batches whose questions come as a stand-in for speech
    jitter: float = 1.0


def initialise(vision: Vision) -> None:
    """Separators that are told apart from the start."""
    nn.init.normal_(vision.row_separator, std=0.5)
    nn.init.normal_(vision.view_separator, std=0.5)


def balanced(questions: Sequence[Question], count: int, random: Random) -> list[Question]:
    """Questions of which each answer is as likely: most of easy-VQA's about colours are answered with "no"."""
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    return [random.choice(by_answer[answer]) for answer in random.choices(sorted(by_answer), k=count)]


def train_vision(
    model: Phi4MMModel,
    mixture: Mixture,
    tasks: TextTasks,
    options: VisionOptions,
    folder: StageFolder,
    watch: Callable[[Phi4MMModel], Mapping[str, float]],
) -> None:
    """Train tower, projector and vision adapter in place."""
    assert model.vision is not None
    model.requires_grad_(False)
    tower = [*model.vision.tower.parameters(), model.vision.row_separator, model.vision.view_separator]
    adapter = [weight for name, weight in model.decoder.named_parameters() if is_lora(name, "vision")]
    others = [*adapter, *model.vision.projector.parameters()]
    for parameter in (*tower, *others):
        parameter.requires_grad_(True)
    image_route = route(Modality.IMAGE, "auto", model.adapters)

    def rounds(number: int, step: int) -> Iterator[tuple[ImageBatch, Answers]]:
        random = Random(number)
        for images, questions in picture_groups(mixture, options.pictures, number, options.jitter):
            yield collate_images(images), ask(model, tasks, images, questions, random, options)

    def loss_of(asked: tuple[ImageBatch, Answers], step: int) -> Tensor:
        batch, answers = asked
        with half_precision(model.device), sdpa_kernel(SDPBackend.MATH):
            return answer_loss(model, _embed(model, batch, answers, options.questions), answers, image_route)

    optimizer = adamw([(tower, options.tower_learning_rate), (others, options.learning_rate)])
    train(model, [optimizer], rounds, loss_of, options.pace, folder, lambda: watch(model))


def picture_groups(
    mixture: Mixture, size: int, number: int, jitter: float
) -> Iterator[tuple[list[StoredImage], list[tuple[Question, ...]]]]:
    """Of round ``number``: random pictures of each bank, varied, in random groups of pictures with one grid."""
    generator = torch.Generator().manual_seed(number)
    by_grid: dict[tuple[int, int], list[tuple[PictureBank, int]]] = {}
    for bank, most in mixture:
        for index in torch.randperm(len(bank), generator=generator)[:most].tolist():
            rows, columns = bank.grids[index]
            by_grid.setdefault((rows, columns), []).append((bank, index))
    groups = [places[start : start + size] for places in by_grid.values() for start in range(0, len(places), size)]
    for at in torch.randperm(len(groups), generator=generator).tolist():
        images = vary_images([bank[index] for bank, index in groups[at]], generator, jitter)
        yield images, [bank.questions[index] for bank, index in groups[at]]


def ask(
    model: Phi4MMModel,
    tasks: TextTasks,
    images: Sequence[StoredImage],
    questions: Sequence[Sequence[Question]],
    random: Random,
    options: VisionOptions,
) -> Answers:
    """``options.questions`` turns about each picture, one after another."""
    assert model.config.vision is not None
    turns = []
    heard = random.random() < options.heard  # all or none: these turns are longer
    for image, known in zip(images, questions, strict=True):
        media = [model.config.vision.image_token_id] * image.num_tokens
        for question in balanced(known, options.questions, random):
            if heard:
                said = tasks.heard(question.text.rstrip("?").split(), random)
                turns.append(Turn([*media, *said], "", question.answer))
            else:
                turns.append(Turn(media, capitalised(question.text, random), question.answer))
    return collate_turns(turns, tasks.tokenizer, model.config.decoder.pad_token_id).to(model.device)


def _embed(model: Phi4MMModel, batch: ImageBatch, answers: Answers, repeats: int) -> Tensor:
    """Embeddings of turns of which ``repeats`` in a row share a picture, which is seen once."""
    assert model.vision is not None
    assert model.config.vision is not None
    images = model.vision(batch.crops.to(model.device), batch.masks.to(model.device), batch.grids)
    flat = torch.cat([image for image in images for _ in range(repeats)])
    embeddings = model.decoder.embed_tokens(answers.token_ids)
    places = answers.token_ids == model.config.vision.image_token_id
    return embeddings.masked_scatter(places.unsqueeze(-1), flat.to(embeddings.dtype))

"""Stage: the vision tower, its projector and the vision adapter, through the frozen backbone.

In the steps of the speech side. The tower first learns to name what it sees in reading order: single printed words and
digits by their class, then everything by CTC over the tokens of the global view; the classifier is thrown away. Then
the projector learns to say in embeddings what the classifier says in words. Then tower, projector and adapter learn to
answer questions, from the loss of the answers' tokens alone. A share of the questions comes as the backbone's stand-in
for speech, so that a heard question can be answered later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.checkpoint.names import is_lora
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import ImageBatch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Modality
from phi4mm.model.vision import Vision
from phi4mm.train.answers import Answers, Turn, answer_loss, collate_turns, word_embeddings
from phi4mm.train.bank import PictureBank, StoredImage, collate_images
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.pictures import Question
from phi4mm.train.text import COLOURS, SHAPES, TextTasks, capitalised

BLANK = 0

Mixture = Sequence[tuple[PictureBank, int]]  # banks, and how many pictures of each a round holds


@dataclass(frozen=True)
class VisionOptions:
    """A step of naming is ``named`` pictures; one of answering is ``pictures`` pictures with ``questions`` each."""

    reading: Pace = Pace(steps=6000, warmup=100, average=0.995, log_every=500)
    reading_learning_rate: float = 1.5e-3
    single_steps: int = 1200  # of reading, about so many, on pictures that one word names
    named: int = 48
    naming: Pace = Pace(steps=300, warmup=50, average=0.98, log_every=150)
    naming_learning_rate: float = 2e-3
    answering: Pace = Pace(steps=4500, warmup=100, average=0.995, log_every=250)
    pictures: int = 8
    questions: int = 4
    learning_rate: float = 1e-3
    tower_learning_rate: float = 3e-4
    weight_decay: float = 0.02
    heard: float = 0.25  # share of the batches whose questions come as a stand-in for speech
    jitter: float = 1.0


class PictureWords(nn.Module):
    """The vision side with a linear classifier of words on each averaged token of the global view."""

    def __init__(self, vision: Vision, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(vision.config.hidden_size, len(vocabulary) + 1)
        self.vocabulary = tuple(vocabulary)

    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        """Log-probabilities [pictures, tokens, 1 + words] of global views [pictures, channels, size, size]."""
        return self.head(self.vision.tokens(crops, masks).flatten(1, 2)).float().log_softmax(-1)

    def of_whole(self, crops: Tensor, masks: Tensor) -> Tensor:
        """Scores [pictures, 1 + words] of the mean token."""
        return self.head(self.vision.tokens(crops, masks).flatten(1, 2).mean(1)).float()


def initialise(vision: Vision) -> None:
    """Separators that are told apart from the start."""
    nn.init.normal_(vision.row_separator, std=0.5)
    nn.init.normal_(vision.view_separator, std=0.5)


def named_words(questions: Sequence[Question]) -> tuple[str, ...] | None:
    """What a picture's questions say is on it, in reading order; ``None`` where they leave the order open."""
    for question in questions:
        if question.task == "read":
            return tuple(question.answer.split())
    asked = [q for q in questions if q.task == "shape question" and q.text.startswith("what")]
    colour = next((q.answer for q in asked if q.answer in COLOURS), None)
    shape = next((q.answer for q in asked if q.answer in SHAPES), None)
    return (colour, shape) if colour and shape else None


def vary_images(images: Sequence[StoredImage], generator: torch.Generator, strength: float) -> list[StoredImage]:
    """Random brightness, contrast and noise, the same in all crops of a picture."""
    varied = []
    for image in images:
        gain, offset, level = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        noise = torch.randn(image.crops.shape, generator=generator) * (0.05 * strength * (level + 1) / 2)
        crops = image.crops.float() * (1 + 0.1 * strength * gain) + 0.06 * strength * offset + noise
        varied.append(replace(image, crops=crops))
    return varied


def train_picture_words(
    vision: Vision,
    banks: Sequence[PictureBank],
    held_out: Mapping[str, PictureBank],
    vocabulary: Sequence[str],
    options: VisionOptions,
    folder: StageFolder,
    device: torch.device,
) -> PictureWords:
    """Teach the tower to name what it sees.

    Args:
        vision: trained in place.
        banks: pictures, of which the global view is shown; those whose reading order is open are left out.
        held_out: pictures by the name under which the share named rightly is logged.
    """
    model = PictureWords(vision, vocabulary).to(device)
    number = {word: index + 1 for index, word in enumerate(vocabulary)}
    known = [
        (bank, index, words)
        for bank in banks
        for index in range(len(bank))
        if (words := named_words(bank.questions[index])) and set(words) <= set(number)
    ]
    single = [place for place in known if len(place[2]) == 1]

    def rounds(round_number: int, step: int) -> Iterator[tuple[ImageBatch, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(round_number)
        places = single if single and step < options.single_steps else known
        order = torch.randperm(len(places), generator=generator).tolist()
        for start in range(0, len(order) - options.named + 1, options.named):
            group = [places[place] for place in order[start : start + options.named]]
            images = vary_images([bank[index] for bank, index, _ in group], generator, options.jitter)
            views = [replace(image, crops=image.crops[:1], masks=image.masks[:1]) for image in images]
            targets = torch.tensor([number[word] for _, _, words in group for word in words])
            lengths = torch.tensor([len(words) for _, _, words in group])
            batch = collate_images(views)
            yield batch, targets.to(device), lengths.to(device)

    def loss_of(named: tuple[ImageBatch, Tensor, Tensor], step: int) -> Tensor:
        batch, targets, lengths = named
        crops, masks = batch.crops.to(device), batch.masks.to(device)
        with half_precision(device):
            if len(targets) == len(lengths):  # every picture is named by one word
                return F.cross_entropy(model.of_whole(crops, masks), targets)
            scores = model(crops, masks).transpose(0, 1)
        places = torch.full_like(lengths, scores.shape[0])
        return F.ctc_loss(scores, targets, places, lengths, blank=BLANK, zero_infinity=True)

    def watch() -> dict[str, float]:
        return {f"named right/{name}": share_named_right(model, bank, device) for name, bank in held_out.items()}

    optimizer = adamw([(model.parameters(), options.reading_learning_rate)], weight_decay=options.weight_decay)
    train(model, [optimizer], rounds, loss_of, options.reading, folder, watch)
    return model


@torch.inference_mode()
def share_named_right(model: PictureWords, bank: PictureBank, device: torch.device) -> float:
    """Of the pictures whose reading order is known, by the best path."""
    right = []
    for index in range(len(bank)):
        if words := named_words(bank.questions[index]):
            image = bank[index]
            scores = model(image.crops[:1].float().to(device), image.masks[:1].to(device))
            path = scores[0].argmax(-1).unique_consecutive().tolist()
            right.append(tuple(model.vocabulary[word - 1] for word in path if word != BLANK) == words)
    return sum(right) / max(1, len(right))


def balanced(questions: Sequence[Question], count: int, random: Random) -> list[Question]:
    """Questions of which each answer is as likely: most of easy-VQA's about colours are answered with "no"."""
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    return [random.choice(by_answer[answer]) for answer in random.choices(sorted(by_answer), k=count)]


def name_the_pictures(
    model: Phi4MMModel,
    words: PictureWords,
    mixture: Mixture,
    tokenizer: Tokenizer,
    options: VisionOptions,
    folder: StageFolder,
) -> None:
    """Regress the projector to the embeddings that the classifier expects, weighted with its probabilities."""
    assert model.vision is not None
    projector = model.vision.projector
    model.requires_grad_(False)
    projector.requires_grad_(True)
    embeddings = word_embeddings(model, tokenizer, words.vocabulary)

    def rounds(number: int, step: int) -> Iterator[ImageBatch]:
        for images, _ in picture_groups(mixture, options.named, number, options.jitter):
            yield collate_images(images)

    def loss_of(batch: ImageBatch, step: int) -> Tensor:
        with torch.no_grad(), half_precision(model.device):
            tokens = words.vision.tokens(batch.crops.to(model.device), batch.masks.to(model.device)).flatten(1, 2)
            said = words.head(tokens).float().softmax(-1)
        return F.mse_loss(projector(tokens.float()), said @ embeddings) / embeddings.var()

    optimizer = adamw([(projector.parameters(), options.naming_learning_rate)])
    train(projector, [optimizer], rounds, loss_of, options.naming, folder, dict)


def train_vision(
    model: Phi4MMModel,
    mixture: Mixture,
    tasks: TextTasks,
    options: VisionOptions,
    folder: StageFolder,
    watch: Callable[[Phi4MMModel], Mapping[str, float]],
) -> None:
    """Train tower, projector and vision adapter in place.

    The adapters are stacked, but rows of the vision route read only its slice, so the others' gradient is zero; without
    weight decay they stay as they are.
    """
    assert model.vision is not None
    model.requires_grad_(False)
    tower = [*model.vision.tower.parameters(), model.vision.row_separator, model.vision.view_separator]
    adapters = [weight for name, weight in model.backbone.named_parameters() if is_lora(name)]
    others = [*adapters, *model.vision.projector.parameters()]
    for parameter in (*tower, *others):
        parameter.requires_grad_(True)
    route = model.router.route(Modality.IMAGE)

    def rounds(number: int, step: int) -> Iterator[tuple[ImageBatch, Answers]]:
        random = Random(number)
        for images, questions in picture_groups(mixture, options.pictures, number, options.jitter):
            yield collate_images(images), ask(model, tasks, images, questions, random, options)

    def loss_of(asked: tuple[ImageBatch, Answers], step: int) -> Tensor:
        batch, answers = asked
        with half_precision(model.device), sdpa_kernel(SDPBackend.MATH):
            return answer_loss(model, _embed(model, batch, answers, options.questions), answers, route)

    optimizer = adamw([(tower, options.tower_learning_rate), (others, options.learning_rate)])
    train(model, [optimizer], rounds, loss_of, options.answering, folder, lambda: watch(model))


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
    return collate_turns(turns, tasks.tokenizer, model.config.backbone.pad_token_id).to(model.device)


def _embed(model: Phi4MMModel, batch: ImageBatch, answers: Answers, repeats: int) -> Tensor:
    """Embeddings of turns of which ``repeats`` in a row share a picture, which is seen once."""
    assert model.vision is not None
    assert model.config.vision is not None
    images = model.vision(batch.crops.to(model.device), batch.masks.to(model.device), batch.grids)
    flat = torch.cat([image for image in images for _ in range(repeats)])
    embeddings = model.backbone.embed_tokens(answers.token_ids)
    places = answers.token_ids == model.config.vision.image_token_id
    return embeddings.masked_scatter(places.unsqueeze(-1), flat.to(embeddings.dtype))

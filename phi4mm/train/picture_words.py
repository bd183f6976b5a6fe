"""Stage: the vision tower learns to name what it sees, and its projector to say so in the decoder's embeddings.

The recipe draws most pictures itself and knows where everything is: each patch names what has its centre there (a
shape, a character), or nothing. That counts shapes and spells texts. Beside it each averaged token of the global view
learns what it is to say to the decoder: where a shape's centre is, its colour and shape; of a printed text, each row
of tokens one word, in reading order. The classifiers are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.vision import Vision
from phi4mm.train.answers import word_embeddings
from phi4mm.train.bank import THINGS, UNKNOWN, PictureBank, StoredImage, vary_images
from phi4mm.train.loop import Pace, StageFolder, adamw, half_precision, train
from phi4mm.train.pictures import READ, Question

NOTHING = 0


@dataclass(frozen=True)
class NamingOptions:
    """A step is ``pictures`` pictures."""

    pace: Pace = Pace(steps=6000, warmup=100, average=0.995, log_every=500)
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    projector_pace: Pace = Pace(steps=400, warmup=50, average=0.98, log_every=200)
    projector_learning_rate: float = 2e-3
    pictures: int = 40
    tiled: float = 0.3  # share of the pictures of several tiles of which these are shown beside the global view
    jitter: float = 1.0


@dataclass(frozen=True)
class NamedCrops:
    """Crops and their masks, of the global views first; classes of ``THINGS`` [crops, patches, patches]; and what each
    token of the global views is to say: probabilities [pictures, tokens per side, tokens per side, 1 + words]."""

    crops: Tensor
    masks: Tensor
    things: Tensor
    said: Tensor

    def to(self, device: torch.device) -> NamedCrops:
        return NamedCrops(*(tensor.to(device) for tensor in (self.crops, self.masks, self.things, self.said)))


class PictureWords(nn.Module):
    """The vision side with linear classifiers: of what each patch shows, and of what each averaged token says."""

    def __init__(self, vision: Vision, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.vision = vision
        self.things = nn.Linear(vision.config.hidden_size, 1 + len(THINGS))
        self.words = nn.Linear(vision.config.hidden_size, 1 + len(vocabulary))
        self.vocabulary = tuple(vocabulary)

    def forward(self, crops: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [crops, patches, 1 + things] and [crops, tokens, 1 + words] of crops as the tower takes them."""
        features = self.vision.tower(crops, masks)
        tokens = self.vision.averaged(features).flatten(1, 2)
        return self.things(features).float(), self.words(tokens).float()


def what_to_say(image: StoredImage, questions: Sequence[Question], number: Mapping[str, int]) -> Tensor:
    """Probabilities [tokens per side, tokens per side, 1 + words] for the global view; ``number`` of each word."""
    tokens = image.things.shape[-1] // 2
    said = torch.zeros(tokens, tokens, 1 + len(number))
    printed = next((asked.answer.split() for asked in questions if asked.task == READ), None)
    if printed is not None:
        for row, word in enumerate(printed[:tokens]):
            said[row, :, number[word]] = 1
    else:
        for row, column in image.things[0].nonzero().tolist():
            for word in THINGS[int(image.things[0, row, column]) - 1].split():
                said[row // 2, column // 2, number[word]] += 1
    total = said.sum(-1, keepdim=True)
    said[..., NOTHING] = (total[..., 0] == 0).float()
    return said / total.clamp(min=1)


def _balanced(losses: Tensor, nothing: Tensor) -> Tensor:
    """The mean where there is something plus the mean where there is nothing, which is almost everywhere."""
    something = 1 - nothing
    where, elsewhere = ((losses * share).sum() / share.sum().clamp(min=1) for share in (something, nothing))
    return where + elsewhere


def train_picture_words(
    vision: Vision,
    banks: Sequence[PictureBank],
    held_out: Mapping[str, PictureBank],
    vocabulary: Sequence[str],
    options: NamingOptions,
    folder: StageFolder,
    device: torch.device,
) -> PictureWords:
    """Teach the tower to name what it sees, in place.

    Args:
        vision: the projector is left alone.
        banks: pictures; those of which it is not known where everything is are left out.
        held_out: pictures by the name under which their figures are logged.
    """
    model = PictureWords(vision, vocabulary).to(device)
    model.vision.projector.requires_grad_(False)
    rounds = _rounds(banks, vocabulary, options, device)

    def loss_of(named: NamedCrops, step: int) -> Tensor:
        with half_precision(device), sdpa_kernel(SDPBackend.MATH):  # the fused kernel's gradient is slow on CPUs
            things, words = model(named.crops, named.masks)
        true = named.things.flatten(1).long()
        of_patches = F.cross_entropy(things.transpose(1, 2), true, reduction="none")
        said = named.said.flatten(1, 2)
        of_tokens = -(said * words[: len(said)].log_softmax(-1)).sum(-1)
        return _balanced(of_patches, (true == NOTHING).float()) + _balanced(of_tokens, said[..., NOTHING])

    def watch() -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, bank in held_out.items():
            figures |= {f"{what} {name}": share for what, share in shares_right(model, bank, device).items()}
        return figures

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw([(trained, options.learning_rate)], weight_decay=options.weight_decay)
    train(model, [optimizer], rounds, loss_of, options.pace, folder, watch)
    return model


def _rounds(
    banks: Sequence[PictureBank], vocabulary: Sequence[str], options: NamingOptions, device: torch.device
) -> Callable[[int, int], Iterator[NamedCrops]]:
    number = _numbers(vocabulary)
    places = [(bank, index) for bank in banks for index in range(len(bank)) if _known(bank[index])]

    def rounds(round_number: int, step: int) -> Iterator[NamedCrops]:
        generator = torch.Generator().manual_seed(round_number)
        order = torch.randperm(len(places), generator=generator).tolist()
        for start in range(0, len(order) - options.pictures + 1, options.pictures):
            group = [places[place] for place in order[start : start + options.pictures]]
            yield named_crops(group, number, generator, options).to(device)

    return rounds


def _numbers(vocabulary: Sequence[str]) -> dict[str, int]:
    """The class of each word; class 0 is nothing."""
    return {word: index + 1 for index, word in enumerate(vocabulary)}


def _known(image: StoredImage) -> bool:
    return int(image.things[0, 0, 0]) != UNKNOWN


def named_crops(
    group: Sequence[tuple[PictureBank, int]],
    number: Mapping[str, int],
    generator: torch.Generator,
    options: NamingOptions,
) -> NamedCrops:
    """Of each picture the global view, and of some the tiles, if there are several: a single one is the same again."""
    images = vary_images([bank[index] for bank, index in group], generator, options.jitter)
    shown = (torch.rand(len(images), generator=generator) < options.tiled).tolist()
    tiled = [place for place, image in enumerate(images) if len(image.crops) > 2 and shown[place]]
    parts = [(place, slice(0, 1)) for place in range(len(images))] + [(place, slice(1, None)) for place in tiled]
    return NamedCrops(
        torch.cat([images[place].crops[part] for place, part in parts]),
        torch.cat([images[place].masks[part] for place, part in parts]),
        torch.cat([images[place].things[part] for place, part in parts]),
        torch.stack(
            [
                what_to_say(image, bank.questions[index], number)
                for image, (bank, index) in zip(images, group, strict=True)
            ]
        ),
    )


@torch.inference_mode()
def shares_right(model: PictureWords, bank: PictureBank, device: torch.device) -> dict[str, float]:
    """Of the global views: how many have everything named in its place, and how many would say all that they are to."""
    number = _numbers(model.vocabulary)
    placed, said = 0, 0
    for index, questions in enumerate(bank.questions):
        image = bank[index]
        things, words = model(image.crops[:1].float().to(device), image.masks[:1].to(device))
        placed += bool((things[0].argmax(-1).cpu() == image.things[0].flatten()).all())
        true = what_to_say(image, questions, number).flatten(0, 1)
        said += bool((true.gather(1, words[0].argmax(-1, keepdim=True).cpu()) > 0).all())
    return {"placed": placed / len(bank), "said": said / len(bank)}


def name_the_pictures(
    model: Phi4MMModel,
    words: PictureWords,
    banks: Sequence[PictureBank],
    tokenizer: Tokenizer,
    options: NamingOptions,
    folder: StageFolder,
) -> None:
    """Regress the projector to the embeddings that the classifier expects, weighted with its probabilities."""
    assert model.vision is not None
    projector = model.vision.projector
    model.requires_grad_(False)
    projector.requires_grad_(True)
    embeddings = word_embeddings(model, tokenizer, words.vocabulary)
    rounds = _rounds(banks, words.vocabulary, options, model.device)

    def loss_of(named: NamedCrops, step: int) -> Tensor:
        with torch.no_grad(), half_precision(model.device):
            tokens = words.vision.tokens(named.crops, named.masks).flatten(1, 2)
            said = words.words(tokens).float().softmax(-1)
        errors = (projector(tokens.float()) - said @ embeddings).square().mean(-1) / embeddings.var()
        return _balanced(errors, said[..., NOTHING])

    optimizer = adamw([(projector.parameters(), options.projector_learning_rate)])
    train(projector, [optimizer], rounds, loss_of, options.projector_pace, folder, dict)

"""The towers in bounded pieces of work: media batched by length, and a long medium in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.engine.options import EngineOptions
from phi4mm.model.media import MediaItem, PreparedImage
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.speech import Speech
from phi4mm.model.vision import Vision

MIN_SHARE = 0.6  # of the longest clip's length in a group: what is below it would be mostly padding
MAX_FRAMES = EngineOptions.encoder_frames
MAX_CROPS = EngineOptions.encoder_crops


class Encoders:
    """The towers of a model, as the engine takes them (``core.Encoder``).

    Args:
        model: in evaluation mode.
        options: the frames and crops that a group may have.
    """

    def __init__(self, model: Phi4MMModel, options: EngineOptions) -> None:
        self._model = model
        self._bounds = {"max_frames": options.encoder_frames, "max_crops": options.encoder_crops}

    def next_group(self, items: Sequence[MediaItem]) -> list[int]:
        return next_group(items, **self._bounds)

    def encode(self, items: Sequence[MediaItem]) -> list[Tensor]:
        return encode(self._model, items, **self._bounds)

    def is_long(self, item: MediaItem) -> bool:
        return item.cost > self._bounds["max_crops" if item.kind == "image" else "max_frames"]

    def encode_in_parts(self, item: MediaItem) -> Iterator[Tensor]:
        return encode_in_parts(self._model, item, **self._bounds)


@torch.inference_mode()
def encode(
    model: Phi4MMModel, items: Sequence[MediaItem], *, max_frames: int = MAX_FRAMES, max_crops: int = MAX_CROPS
) -> list[Tensor]:
    """The embeddings of media of any kinds and lengths.

    Args:
        items: encoded in groups of similar length; see ``next_group`` for the budgets.

    Returns:
        One [tokens, decoder width] per item, in order.
    """
    embedded: dict[int, Tensor] = {}
    waiting = sorted(range(len(items)), key=lambda index: -items[index].cost)
    while waiting:
        places = next_group([items[index] for index in waiting], max_frames=max_frames, max_crops=max_crops)
        group = [waiting[place] for place in places]
        values = _encode_group(model, [items[index] for index in group], max_frames, max_crops)
        embedded.update(zip(group, values, strict=True))
        waiting = [index for index in waiting if index not in embedded]
    return [embedded[index] for index in range(len(items))]


def next_group(items: Sequence[MediaItem], *, max_frames: int = MAX_FRAMES, max_crops: int = MAX_CROPS) -> list[int]:
    """Which items to encode together, in one bounded piece of work.

    The first item is always among them. Further ones of its kind are added, those of the most similar length first,
    while the padded group stays within the budget and every clip is at least ``MIN_SHARE`` of the longest.

    Args:
        items: the oldest first; at least one.
        max_frames, max_crops: of a group, padded; the first item alone may have more (see ``encode_in_parts``).

    Returns:
        Their indices, in order.
    """
    first = items[0]
    group, shortest, longest, total = [0], first.cost, first.cost, first.cost
    alike = [index for index, item in enumerate(items) if index and item.kind == first.kind]
    for index in sorted(alike, key=lambda index: abs(items[index].cost - first.cost)):
        item = items[index]
        low, high = min(shortest, item.cost), max(longest, item.cost)
        if item.kind == "image":
            fits = total + item.cost <= max_crops
        else:
            fits = low >= MIN_SHARE * high and (len(group) + 1) * padded_frames(high) <= max_frames
        if fits:
            group.append(index)
            shortest, longest, total = low, high, total + item.cost
    # One of four sizes an octave: a CPU's kernels are made anew for each.
    step = 1 << max(len(group).bit_length() - 3, 0)
    return sorted(group[: len(group) // step * step])


def padded_frames(num_frames: int) -> int:
    """The length to which a group is padded whose longest clip has ``num_frames``: in steps of at most an eighth, as a
    CPU's kernels are made anew for every shape."""
    step = max(8, 2 ** (num_frames.bit_length() - 4))
    return -(-num_frames // step) * step


@torch.inference_mode()
def encode_in_parts(
    model: Phi4MMModel, item: MediaItem, *, max_frames: int = MAX_FRAMES, max_crops: int = MAX_CROPS
) -> Iterator[Tensor]:
    """The embeddings of one medium of any length, in bounded pieces of work.

    Args:
        max_frames: of a part of a clip; but at least one attention window (``SpeechConfig.window_frames``).
        max_crops: of a part of an image.

    Yields:
        Consecutive parts of its embeddings [tokens, decoder width]. Those of an image are complete only after its last
        crop: the parts before that are empty.
    """
    if isinstance(item.features, PreparedImage):
        yield from _image_parts(model, item.features, max_crops)
    else:
        yield from _clip_parts(model, item.features, item.projector, max_frames)


def _image_parts(model: Phi4MMModel, image: PreparedImage, max_crops: int) -> Iterator[Tensor]:
    vision = _vision(model)
    parts = list(zip(image.crops.split(max_crops), image.masks.split(max_crops), strict=True))
    features = []
    for number, (crops, masks) in enumerate(parts, 1):
        features.append(vision.tokens(crops.to(model.device, model.dtype), masks.to(model.device)))
        if number < len(parts):
            yield features[-1].new_empty(0, model.config.decoder.hidden_size)
    yield vision.assemble(torch.cat(features), image.masks, image.grid)


def _clip_parts(model: Phi4MMModel, features: Tensor, projector: str, max_frames: int) -> Iterator[Tensor]:
    speech = _speech(model)
    window = speech.config.window_frames
    step = max(1, max_frames // window) * window
    clip = features[None].to(model.device, model.dtype)
    num_frames = torch.tensor([len(features)], device=model.device)
    for start in range(0, len(features), step):
        yield from speech(clip, num_frames, [projector], start=start, stop=start + step)


def _encode_group(model: Phi4MMModel, items: Sequence[MediaItem], max_frames: int, max_crops: int) -> list[Tensor]:
    """The embeddings of media of one kind, in one pass of their tower; but a single one over the budget in parts."""
    if len(items) == 1 and items[0].cost > (max_crops if items[0].kind == "image" else max_frames):
        return [torch.cat(list(encode_in_parts(model, items[0], max_frames=max_frames, max_crops=max_crops)))]
    images = [item.features for item in items if isinstance(item.features, PreparedImage)]
    clips = [item.features for item in items if isinstance(item.features, Tensor)]
    if images:
        crops = torch.cat([image.crops for image in images]).to(model.device, model.dtype)
        masks = torch.cat([image.masks for image in images]).to(model.device)
        return _vision(model)(crops, masks, tuple(image.grid for image in images))
    frames = padded_frames(max(map(len, clips)))
    features = torch.stack([F.pad(clip, (0, 0, 0, frames - len(clip))) for clip in clips])
    num_frames = torch.tensor([len(clip) for clip in clips], device=model.device)
    projectors = [item.projector for item in items]
    return _speech(model)(features.to(model.device, model.dtype), num_frames, projectors)


def _vision(model: Phi4MMModel) -> Vision:
    assert model.vision is not None, "images need a vision tower"
    return model.vision


def _speech(model: Phi4MMModel) -> Speech:
    assert model.speech is not None, "audio needs a speech tower"
    return model.speech

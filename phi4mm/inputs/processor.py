"""Requests to the model's tensors: prompts are rendered, media are read, rows are padded together."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phi4mm.content import MediaPlace
from phi4mm.errors import BatchError, Phi4MMError, PromptError
from phi4mm.inputs.audio import Waveform, levelled, load_audio, log_mel, narrowed
from phi4mm.inputs.image import load_image, prepare_image
from phi4mm.inputs.prompt import render
from phi4mm.inputs.source import source_name
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import AudioBatch, Batch, ImageBatch
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.media import Deferred, Features, MediaItem, PreparedImage, cost_of, nbytes_of
from phi4mm.model.router import route
from phi4mm.types import Modality, Request, Route
from phi4mm.validate import wrong

_MOST_SIZES = 4096  # media whose sizes are remembered


@dataclass(frozen=True)
class Row:
    """One request, ready for the model.

    Attributes:
        token_ids: the prompt, media tokens included.
        route: its adapters and audio projector.
        media: its images and clips, in the order of their tokens.
    """

    token_ids: tuple[int, ...]
    route: Route
    media: tuple[MediaItem, ...] = ()

    @property
    def images(self) -> tuple[PreparedImage, ...]:
        """The images among ``media``."""
        return tuple(item.features for item in self.media if isinstance(item.features, PreparedImage))

    @property
    def clips(self) -> tuple[Tensor, ...]:
        """Log-mels [frames, mels] of the clips among ``media``."""
        return tuple(item.features for item in self.media if isinstance(item.features, Tensor))


class Processor:
    """Makes a ``Batch`` of requests of any mixture of modalities.

    Args:
        config: the model's sizes and media token ids.
        tokenizer: of the same checkpoint.
        adapter_names: returns the names of the adapters that are loaded now; by default those of ``config``.
    """

    def __init__(
        self,
        config: Phi4MMConfig,
        tokenizer: Tokenizer,
        adapter_names: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        own = tuple(adapter.name for adapter in config.adapters)
        self.adapter_names = adapter_names or (lambda: own)
        self._sizes = _Sizes()

    def __call__(self, requests: Iterable[Request | Mapping[str, Any]]) -> Batch:
        """Every tensor that the model needs, plus one route per row.

        Raises:
            PromptError: there are no requests, or they are not a list.
            BatchError: some requests are bad; its ``results`` hold the good ones' rows.
        """
        try:
            requests = iter(None if isinstance(requests, Request | Mapping | str) else requests)  # type: ignore[arg-type]
        except TypeError as error:
            raise wrong("requests", requests, "a list of requests, even for a single one") from error
        rows, errors = self.rows(requests)
        if not rows:
            raise PromptError("requests holds none; expected a list of at least one")
        if errors:
            raise BatchError(rows, errors)
        return self.collate([row for row in rows if row is not None])

    def rows(self, requests: Iterable[Request | Mapping[str, Any]]) -> tuple[list[Row | None], dict[int, Phi4MMError]]:
        """Each request's row, or ``None`` and an error under its index."""
        rows: list[Row | None] = []
        errors: dict[int, Phi4MMError] = {}
        for index, request in enumerate(requests):
            try:
                rows.append(self.row(Request.of(request)))
            except Phi4MMError as error:
                rows.append(None)
                errors[index] = error
        return rows, errors

    def row(self, request: Request) -> Row:
        """Render one request and read its media.

        Raises:
            Phi4MMError: the request or one of its media is bad, or this model cannot take it.
        """
        modality = Modality.of(has_images=bool(request.images), has_audios=bool(request.audios))
        if request.images and self.config.vision is None:
            raise PromptError("the request carries images, but this checkpoint has no vision tower; use another")
        if request.audios and self.config.speech is None:
            raise PromptError("the request carries audio, but this checkpoint has no speech tower; use another")
        taken = route(modality, request.adapter, self.adapter_names())

        token_ids: list[int] = []
        media: list[MediaItem] = []
        room = self.config.decoder.max_positions
        for piece in render(request, self.tokenizer, room):
            if isinstance(piece, MediaPlace):
                item, token_id = self._medium(request, piece, taken.audio_projector or "", start=len(token_ids))
                media.append(item)
                token_ids += [token_id] * item.num_tokens
            else:
                token_ids.append(piece)

        if len(token_ids) >= room:
            raise PromptError(f"the prompt is {len(token_ids)} tokens long; this model holds {room}: shorten it")
        return Row(tuple(token_ids), taken, tuple(media))

    def _medium(self, request: Request, place: MediaPlace, projector: str, *, start: int) -> tuple[MediaItem, int]:
        """The medium of a place, and the token id that stands for it."""
        if place.kind == "image":
            assert self.config.vision is not None
            name = _name(request.images[place.index], f"image {place.index + 1}")
            picture = load_image(request.images[place.index], name=name)
            digest = _digest(f"image {picture.size};", picture.tobytes())
            make_image = partial(prepare_image, picture, self.config.vision, name=name)
            return self._item("image", make_image, "image", start, digest), self.config.vision.image_token_id
        assert self.config.speech is not None
        name = _name(request.audios[place.index], f"audio {place.index + 1}")
        waveform = load_audio(request.audios[place.index], name=name)
        samples = np.ascontiguousarray(waveform.samples)
        header = f"{projector} {samples.dtype} {samples.shape} {waveform.sampling_rate};"
        digest = _digest(header, samples.data)
        item = self._item("audio", partial(self._log_mel, waveform), projector, start, digest)
        return item, self.config.speech.audio_token_id

    def _item(
        self, kind: Literal["image", "audio"], make: Callable[[], Features], projector: str, start: int, digest: bytes
    ) -> MediaItem:
        """A medium with its features; of one that was seen before they are made when they are asked for."""
        size = self._sizes.get(digest)
        if size is not None:
            deferred = Deferred(make, size.cost, size.nbytes)
            return MediaItem(kind, deferred, projector, size.num_tokens, start, digest)
        features = make()
        if isinstance(features, PreparedImage):
            num_tokens = features.num_tokens
        else:
            assert self.config.speech is not None
            num_tokens = self.config.speech.num_tokens(len(features))
        self._sizes.put(digest, _Size(num_tokens, cost_of(features), nbytes_of(features)))
        return MediaItem(kind, features, projector, num_tokens, start, digest)

    def _log_mel(self, waveform: Waveform) -> Tensor:
        assert self.config.speech is not None
        if self.config.front_end.detect_narrow_band:
            waveform = narrowed(waveform)
        if self.config.front_end.peak_level is not None:
            waveform = levelled(waveform, self.config.front_end.peak_level)
        return log_mel(waveform, num_mels=self.config.speech.num_mels)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad rows into one batch, on the CPU."""
        token_ids = [torch.tensor(row.token_ids) for row in rows]
        images = [image for row in rows for image in row.images]
        clips = [clip for row in rows for clip in row.clips]
        return Batch(
            token_ids=pad_sequence(token_ids, batch_first=True, padding_value=self.config.decoder.pad_token_id),
            lengths=torch.tensor([len(ids) for ids in token_ids]),
            routes=tuple(row.route for row in rows),
            images=ImageBatch(
                crops=torch.cat([image.crops for image in images]),
                masks=torch.cat([image.masks for image in images]),
                grids=tuple(image.grid for image in images),
            )
            if images
            else None,
            audios=AudioBatch(
                features=pad_sequence(clips, batch_first=True),
                num_frames=torch.tensor([len(clip) for clip in clips]),
                rows=tuple(index for index, row in enumerate(rows) for _ in row.clips),
            )
            if clips
            else None,
        )


class _Size(NamedTuple):
    """Of a medium that was seen: see ``MediaItem``."""

    num_tokens: int
    cost: int
    nbytes: int


class _Sizes:
    """Those of the media that were seen last, by their digests; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, _Size] = OrderedDict()

    def get(self, digest: bytes) -> _Size | None:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def put(self, digest: bytes, size: _Size) -> None:
        with self._lock:
            self._kept[digest] = size
            if len(self._kept) > _MOST_SIZES:
                self._kept.popitem(last=False)


def _digest(header: str, content: bytes | memoryview) -> bytes:
    """The first 16 bytes of SHA-256, for which processors have instructions."""
    digest = hashlib.sha256(header.encode())
    digest.update(content)
    return digest.digest()[:16]


def _name(source: Any, position: str) -> str:
    """What errors call a medium: its place in the request, with the file's name where it has one."""
    name = source_name(source, "") if isinstance(source, str | os.PathLike) else ""
    return f"{position} ({name})" if name else position

"""Requests to the model's tensors: prompts are rendered, media are read, rows are padded together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phi4mm.errors import BatchError, Phi4MMError, PromptError
from phi4mm.inputs.audio import levelled, load_audio, log_mel, narrowed
from phi4mm.inputs.image import PreparedImage, load_image, prepare_image
from phi4mm.inputs.prompt import MediaPlace, render
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.batch import AudioBatch, Batch, ImageBatch
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.router import Modality, Route, Router
from phi4mm.types import Request


@dataclass(frozen=True)
class Row:
    """One request, ready for the model.

    Attributes:
        token_ids: the prompt, media tokens included.
        route: its adapter and audio projector.
        images, clips: the features of its media, in the order of their tokens; clips are log-mel [frames, mels].
    """

    token_ids: tuple[int, ...]
    route: Route
    images: tuple[PreparedImage, ...] = ()
    clips: tuple[Tensor, ...] = ()


class Processor:
    """Makes a ``Batch`` of requests of any mixture of modalities.

    Args:
        config: the model's sizes and media token ids.
        tokenizer: of the same checkpoint.
    """

    def __init__(self, config: Phi4MMConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.router = Router(adapter.name for adapter in config.adapters)

    def __call__(self, requests: Iterable[Request | Mapping[str, Any]]) -> Batch:
        """Every tensor that the model needs, plus one route per row.

        Raises:
            BatchError: some requests are bad; its ``results`` hold the good ones' rows.
        """
        rows, errors = self.rows(requests)
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
        route = self.router.route(modality, request.adapter)
        pieces = render(request, self.tokenizer)

        token_ids: list[int] = []
        images: list[PreparedImage] = []
        clips: list[Tensor] = []
        for piece in pieces:
            if not isinstance(piece, MediaPlace):
                token_ids.append(piece)
            elif piece.kind == "image":
                assert self.config.vision is not None
                name = _name(request.images[piece.index], f"image {piece.index + 1}")
                image = load_image(request.images[piece.index], name=name)
                images.append(prepare_image(image, self.config.vision, name=name))
                token_ids += [self.config.vision.image_token_id] * images[-1].num_tokens
            else:
                assert self.config.speech is not None
                name = _name(request.audios[piece.index], f"audio {piece.index + 1}")
                waveform = load_audio(request.audios[piece.index], name=name)
                if self.config.speech.detect_narrow_band:
                    waveform = narrowed(waveform)
                if self.config.speech.peak_level is not None:
                    waveform = levelled(waveform, self.config.speech.peak_level)
                clips.append(log_mel(waveform, num_mels=self.config.speech.num_mels))
                token_ids += [self.config.speech.audio_token_id] * self.config.speech.num_tokens(len(clips[-1]))

        room = self.config.decoder.max_positions
        if len(token_ids) >= room:
            raise PromptError(f"the prompt is {len(token_ids)} tokens long; this model holds {room}: shorten it")
        return Row(tuple(token_ids), route, tuple(images), tuple(clips))

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


def _name(source: Any, position: str) -> str:
    """What errors call a medium: its place in the request, with the file's name where it has one."""
    return f"{position} ({Path(source)})" if isinstance(source, str | Path) else position

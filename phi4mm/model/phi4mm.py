"""The whole model: embed text and media, run the decoder, score the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phi4mm.model.batch import Batch
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.decoder import Decoder
from phi4mm.model.lora import Gate, make_gate
from phi4mm.model.speech import Speech
from phi4mm.model.vision import Vision
from phi4mm.types import Route


class Phi4MMModel(nn.Module):
    """Phi-4-multimodal (technical report, arXiv 2503.01743), any size.

    Args:
        config: every size; towers that are ``None`` there are absent.
    """

    def __init__(self, config: Phi4MMConfig) -> None:
        super().__init__()
        self.config = config
        total_rank = sum(adapter.rank for adapter in config.adapters)
        decoder_size = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder, total_rank)
        self.vision = Vision(config.vision, decoder_size) if config.vision else None
        self.speech = Speech(config.speech, decoder_size) if config.speech else None

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    def gate(self, routes: tuple[Route, ...]) -> Gate | None:
        """How the adapters count in rows with these routes."""
        return make_gate(self.config.adapters, routes, device=self.device, dtype=self.dtype)

    def long_rows(self, lengths: Tensor) -> Tensor:
        """Which rows of these lengths take the long rope factors: bool [rows]."""
        return lengths > self.config.decoder.original_max_positions

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings with those of images and audio in their places: [rows, tokens, hidden]."""
        embeddings = self.decoder.embed_tokens(batch.token_ids)
        if batch.images is not None:
            assert self.vision is not None, "a batch with images needs a vision tower"
            images = batch.images
            values = self.vision(images.crops.to(self.dtype), images.masks, images.grids)
            embeddings = _place(embeddings, batch.token_ids == self.vision.config.image_token_id, values)
        if batch.audios is not None:
            assert self.speech is not None, "a batch with audio needs a speech tower"
            assert self.config.speech is not None
            audios = batch.audios
            projectors = [batch.routes[row].audio_projector or "speech" for row in audios.rows]
            values = self.speech(audios.features.to(self.dtype), audios.num_frames, projectors)
            embeddings = _place(embeddings, batch.token_ids == self.config.speech.audio_token_id, values)
        return embeddings

    def forward(self, batch: Batch) -> Tensor:
        """Logits of every position: [rows, tokens, vocabulary]. What stands past a row's length is meaningless."""
        batch = batch.to(self.device)
        num_rows, num_tokens = batch.token_ids.shape
        positions = torch.arange(num_tokens, device=self.device).expand(num_rows, -1)
        hidden = self.decoder(self.embed(batch), positions, self.long_rows(batch.lengths), gate=self.gate(batch.routes))
        return self.decoder.logits(hidden)


def _place(embeddings: Tensor, places: Tensor, values: list[Tensor]) -> Tensor:
    """Put the rows of ``values``, one after another, where ``places`` [rows, tokens] is true."""
    flat = torch.cat(values).to(embeddings.dtype)
    return embeddings.masked_scatter(places.unsqueeze(-1), flat)

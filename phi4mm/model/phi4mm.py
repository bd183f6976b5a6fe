"""The whole model: embed text and media, run the decoder, score the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from phi4mm.errors import AdapterError, PromptError
from phi4mm.model.batch import Batch
from phi4mm.model.config import AdapterConfig, Phi4MMConfig
from phi4mm.model.decoder import Decoder
from phi4mm.model.lora import LoRA, lora_linears, row_adapters
from phi4mm.model.speech import Speech
from phi4mm.model.vision import Vision


class Phi4MMModel(nn.Module):
    """Phi-4-multimodal (technical report, arXiv 2503.01743), any size.

    Args:
        config: every size; towers that are ``None`` there are absent.

    Attributes:
        config: the same, with the adapters that are attached now.
        merged: the adapter that is merged into a copy of the weights (engine/merge.py), if any.
    """

    def __init__(self, config: Phi4MMConfig) -> None:
        super().__init__()
        self.config = replace(config, adapters=())
        self.merged: str | None = None
        decoder_size = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder)
        self.vision = Vision(config.vision, decoder_size) if config.vision else None
        self.speech = Speech(config.speech, decoder_size) if config.speech else None
        for adapter in config.adapters:
            self.add_adapter(adapter)

    @property
    def adapters(self) -> dict[str, AdapterConfig]:
        """The adapters that are attached, by name."""
        return {adapter.name: adapter for adapter in self.config.adapters}

    def add_adapter(self, config: AdapterConfig, parts: Mapping[str, LoRA] | None = None) -> None:
        """Attach an adapter to the decoder's linears.

        Args:
            config: its name, rank, alpha and dropout.
            parts: what to attach to each linear, by its name in the decoder (``lora_linears``); by default an adapter
                at its initial values, which changes nothing yet.

        Raises:
            AdapterError: there is one of this name already.
        """
        if config.name in self.adapters:
            raise AdapterError(f"there is an adapter {config.name!r} already; choose another name or unload it first")
        for name, linear in lora_linears(self.decoder).items():
            part = LoRA.initial(linear.in_size, linear.out_size, config) if parts is None else parts[name]
            linear.attach(config.name, part.to(self.device, self.dtype).train(self.training))
        self.config = replace(self.config, adapters=(*self.config.adapters, config))

    def remove_adapter(self, name: str) -> None:
        """Detach an adapter and free its memory.

        Raises:
            AdapterError: there is none of this name, or it is merged.
        """
        if name not in self.adapters:
            known = ", ".join(repr(each) for each in self.adapters) or "none"
            raise AdapterError(f"adapter {name!r} is not loaded; the model has {known}")
        if name == self.merged:
            raise AdapterError(f"adapter {name!r} is merged into the weights; unmerge it first")
        for linear in lora_linears(self.decoder).values():
            linear.detach(name)
        self.config = replace(self.config, adapters=tuple(a for a in self.config.adapters if a.name != name))

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    def long_rows(self, lengths: Tensor) -> Tensor:
        """Which rows of these lengths take the long rope factors: bool [rows]."""
        return lengths > self.config.decoder.original_max_positions

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings with those of images and audio in their places: [rows, tokens, hidden].

        Raises:
            PromptError: the rows hold more or fewer placeholder tokens than the media need.
        """
        embeddings = self.decoder.embed_tokens(batch.token_ids)
        if batch.images is not None:
            assert self.vision is not None, "a batch with images needs a vision tower"
            images = batch.images
            values = self.vision(images.crops.to(self.dtype), images.masks, images.grids)
            embeddings = _place(embeddings, batch.token_ids == self.vision.config.image_token_id, values, "image")
        if batch.audios is not None:
            assert self.speech is not None, "a batch with audio needs a speech tower"
            assert self.config.speech is not None
            audios = batch.audios
            projectors = [batch.routes[row].audio_projector or "speech" for row in audios.rows]
            values = self.speech(audios.features.to(self.dtype), audios.num_frames, projectors)
            embeddings = _place(embeddings, batch.token_ids == self.config.speech.audio_token_id, values, "audio")
        return embeddings

    def forward(self, batch: Batch) -> Tensor:
        """Logits of every position: [rows, tokens, vocabulary]. What stands past a row's length is meaningless."""
        batch = batch.to(self.device)
        num_rows, num_tokens = batch.token_ids.shape
        positions = torch.arange(num_tokens, device=self.device).expand(num_rows, -1)
        adapters = row_adapters([route.adapters for route in batch.routes], device=self.device)
        hidden = self.decoder(self.embed(batch), positions, self.long_rows(batch.lengths), adapters)
        return self.decoder.logits(hidden)


def _place(embeddings: Tensor, places: Tensor, values: list[Tensor], kind: str) -> Tensor:
    """Put the rows of ``values``, one after another, where ``places`` [rows, tokens] is true."""
    flat = torch.cat(values).to(embeddings.dtype)
    num_places = int(places.sum())
    if num_places != len(flat):
        raise PromptError(
            f"the token ids hold {num_places} {kind} placeholder tokens, but the {kind} inputs give {len(flat)} "
            "embeddings; expected as many of each: repeat the placeholder once for each token of the input"
        )
    return embeddings.masked_scatter(places.unsqueeze(-1), flat)

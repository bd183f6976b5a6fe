"""The engine's calculations over the model and its KV cache: encode media, prefill, decode, copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from phi4mm.engine.attention import DecodeAttention, PaddedAttention, PrefillAttention
from phi4mm.engine.kv_cache import Extent, KVCache
from phi4mm.model.decoder import Wanted
from phi4mm.model.lora import row_adapters
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.rope import inverse_frequencies


@dataclass(frozen=True)
class Chunk:
    """Neighbouring tokens of one row, to be prefilled.

    Attributes:
        extent: of the row.
        start: position of the first token; the earlier ones are computed.
        token_ids: of the chunk.
        media: embeddings that take the place of those of tokens: where in the chunk, and [tokens, hidden].
        adapters: of the row.
        long: whether the row takes the long rope factors.
        final: whether it ends what is known of the row, so that its last token's logits are wanted.
    """

    extent: Extent
    start: int
    token_ids: Sequence[int]
    media: Sequence[tuple[int, Tensor]]
    adapters: tuple[str, ...]
    long: bool
    final: bool

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True)
class Token:
    """The newest token of the row in ``extent``, which stands at ``position``; the earlier ones are computed."""

    extent: Extent
    token_id: int
    position: int
    adapters: tuple[str, ...]
    long: bool

    @property
    def order(self) -> tuple[tuple[str, ...], int, int]:
        """Rows in this order have neighbours with the same adapters, and with extents that can be read in one call."""
        return (self.adapters, self.extent.capacity, self.extent.start)


class Runner(Protocol):
    """What the engine needs of a model and its KV cache."""

    num_tokens: int  # that the cache holds
    vocab_size: int
    max_positions: int
    original_max_positions: int  # rows that are longer take the long rope factors
    shares_prefixes: bool  # whether what is kept of a row's first tokens may be copied to another row

    def prefill(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute chunks of prompts, in order of their adapters; the logits after each final one
        [final chunks, vocabulary]."""
        ...

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        """Compute one token of each of some rows, in order of ``Token.order``; the logits after each
        [rows, vocabulary]."""
        ...

    def copy(self, source: Extent, target: Extent, num_tokens: int) -> None:
        """Copy the keys and values of the first tokens of one row to another's place."""
        ...


MakeRunner = Callable[[Phi4MMModel, int], Runner]  # of a model and of the tokens that its KV cache holds


def rounded(number: int) -> int:
    """The next of four numbers an octave: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(number.bit_length() - 3, 0)
    return -(-number // step) * step


class ModelRunner:
    """See ``Runner``.

    Args:
        model: in evaluation mode.
        num_tokens: that the KV cache holds.
    """

    def __init__(self, model: Phi4MMModel, num_tokens: int) -> None:
        config = model.config.decoder
        self.model = model
        self.num_tokens = num_tokens
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        # Without long factors nothing changes for a long row.
        has_long = bool(config.long_factor) and config.long_factor != config.short_factor
        self.original_max_positions = config.original_max_positions if has_long else config.max_positions
        self.cache = KVCache(model.decoder.cache_specs(), num_tokens, device=model.device, dtype=model.dtype)
        self.shares_prefixes = self.cache.is_divisible
        self._frequencies = inverse_frequencies(config, model.device)

    def prefill(self, chunks: Sequence[Chunk]) -> Tensor:
        model, device = self.model, self.model.device
        counts = [len(chunk.token_ids) for chunk in chunks]
        padding = self._padding(sum(counts))
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        embeddings = model.decoder.embed_tokens(torch.tensor(token_ids + [0] * padding, device=device))
        first = 0
        for chunk, count in zip(chunks, counts, strict=True):
            for place, values in chunk.media:
                embeddings[first + place : first + place + len(values)] = values
            first += count
        final = [chunk for chunk in chunks if chunk.final]
        ends = torch.tensor(counts).cumsum(0)[torch.tensor([chunk.final for chunk in chunks])] - 1
        wanted = Wanted(ends.to(device), row_adapters([chunk.adapters for chunk in final], device=device))
        attention = PrefillAttention(self.cache, chunks, embeddings)
        counts[-1] += padding  # the tokens that fill up the number take the adapters of the last chunk
        hidden = model.decoder(
            embeddings[:, None],
            F.pad(attention.positions, (0, padding))[:, None],
            torch.tensor([chunk.long for chunk in chunks]).repeat_interleave(torch.tensor(counts)).to(device),
            adapters=row_adapters([chunk.adapters for chunk in chunks], counts, device=device),
            cache=PaddedAttention(attention, len(token_ids), padding) if padding else attention,
            frequencies=self._frequencies,
            wanted=wanted,
        )
        return model.decoder.logits(hidden[:, 0])

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        model, device = self.model, self.model.device
        padding = self._padding(len(tokens))
        filled = [*tokens, *[tokens[-1]] * padding]
        token_ids = torch.tensor([token.token_id for token in filled], device=device)
        embeddings = model.decoder.embed_tokens(token_ids[:, None])
        extents, positions = [token.extent for token in tokens], [token.position for token in tokens]
        attention = DecodeAttention(self.cache, extents, positions, embeddings)
        hidden = model.decoder(
            embeddings,
            F.pad(attention.positions, (0, padding))[:, None],
            torch.tensor([token.long for token in filled], device=device),
            adapters=row_adapters([token.adapters for token in filled], device=device),
            cache=PaddedAttention(attention, len(tokens), padding) if padding else attention,
            frequencies=self._frequencies,
        )
        return model.decoder.logits(hidden[: len(tokens), 0])

    def _padding(self, num_tokens: int) -> int:
        """Tokens that are added so that few numbers of tokens occur: in bfloat16 a CPU makes its kernels anew for each
        number, which takes longer than the product."""
        if self.model.device.type != "cpu" or self.model.dtype != torch.bfloat16:
            return 0
        return rounded(num_tokens) - num_tokens

    def copy(self, source: Extent, target: Extent, num_tokens: int) -> None:
        self.cache.copy(source.start, target.start, num_tokens)

"""The Phi-4-mini decoder: RMSNorm, grouped-query attention with LongRoPE, gated MLP, tied embedding.

Phi-4-Mini technical report, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phi4mm.model.cache import KeyValueSpec
from phi4mm.model.config import DecoderConfig
from phi4mm.model.lora import LoRALinear, RowAdapters
from phi4mm.model.rope import rotary_tables, rotate


class CachedAttention(Protocol):
    """Attention over a cache: keep this step's keys and values, and attend to those of each row so far."""

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Rotated [rows, heads, tokens, head] and [rows, key/value heads, tokens, head] -> the shape of ``query``,
        which in the last layer holds only those rows whose result is wanted, if not all are."""
        ...


@dataclass(frozen=True)
class Wanted:
    """The rows whose hidden states are wanted of a prefill.

    Attributes:
        rows: their indices, int64 [wanted rows].
        adapters: of the wanted rows, which count from 0 there.
    """

    rows: Tensor
    adapters: RowAdapters | None


class Attention(nn.Module):
    """Grouped-query attention; queries, keys and values come from one fused projection."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        self.head_size = config.head_size
        self.window = config.sliding_window
        self.qkv_proj = LoRALinear(config.hidden_size, sum(self.heads) * self.head_size)
        self.o_proj = LoRALinear(config.num_heads * self.head_size, config.hidden_size)

    def cache_spec(self) -> KeyValueSpec:
        """What this layer keeps of a row."""
        return KeyValueSpec(self.heads[1], self.head_size, self.window)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        adapters: RowAdapters | None,
        cache: CachedAttention | None,
        mask: Tensor | None,
        wanted: Wanted | None,
    ) -> Tensor:
        qkv = self.qkv_proj(hidden, adapters).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        rotated, value = qkv.split((self.heads[0] + self.heads[1], self.heads[2]), dim=1)
        query, key = rotate(rotated, *rotary).split(self.heads[:2], dim=1)
        if wanted is not None:
            query, adapters = query[wanted.rows], wanted.adapters
        if cache is not None:
            attended = cache.attend(self.layer, query, key, value)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
            )
        return self.o_proj(attended.transpose(1, 2).flatten(2), adapters)


class FeedForward(nn.Module):
    """Gated MLP; the first half of the fused projection is the gate."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = LoRALinear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = LoRALinear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor, adapters: RowAdapters | None) -> Tensor:
        gate, value = self.gate_up_proj(hidden, adapters).chunk(2, dim=-1)
        return self.down_proj(value * F.silu(gate), adapters)


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.post_attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def cache_spec(self) -> KeyValueSpec:
        """What this layer keeps of a row."""
        return self.attention.cache_spec()

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        adapters: RowAdapters | None,
        cache: CachedAttention | None,
        mask: Tensor | None,
        wanted: Wanted | None = None,
    ) -> Tensor:
        attended = self.attention(self.input_norm(hidden), rotary, adapters, cache, mask, wanted)
        if wanted is not None:
            hidden, adapters = hidden[wanted.rows], wanted.adapters
        hidden = attended + hidden
        return hidden + self.mlp(self.post_attention_norm(hidden), adapters)


class Decoder(nn.Module):
    """The decoder, from embeddings to hidden states; ``logits`` turns those into logits.

    Args:
        config: sizes.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def cache_specs(self) -> tuple[KeyValueSpec, ...]:
        """What each layer keeps of a row."""
        specs = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            specs.append(layer.cache_spec())
        return tuple(specs)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        long_rows: Tensor,
        adapters: RowAdapters | None = None,
        cache: CachedAttention | None = None,
        frequencies: Tensor | None = None,
        wanted: Wanted | None = None,
    ) -> Tensor:
        """Run the decoder.

        Args:
            embeddings: [rows, tokens, hidden].
            positions: of each token in its row [rows, tokens].
            long_rows: bool [rows], rows that take the long rope factors.
            adapters: of each row; ``None`` for none at all.
            cache: attends to the earlier tokens of each row; ``None``: these tokens start their rows, and see one
                another causally.
            frequencies: the rope's ``inverse_frequencies``, where they are kept.
            wanted: the rows whose hidden states are wanted: of the others the last layer computes keys and values
                alone, for the cache. ``None``: all.

        Returns:
            Normed hidden states [rows, tokens, hidden], or [wanted rows, tokens, hidden].
        """
        window = self.config.sliding_window
        mask = None
        if cache is None and window is not None and embeddings.shape[1] > window:
            mask = visible_keys(positions, embeddings.shape[1], window)
        cos, sin = rotary_tables(self.config, positions, long_rows, frequencies)
        rotary = (cos.to(embeddings.dtype), sin.to(embeddings.dtype))
        hidden = embeddings
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotary, adapters, cache, mask, wanted if index == last else None)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocabulary]."""
        weight = self.embed_tokens.weight if self.head is None else self.head.weight
        return F.linear(hidden, weight)


def visible_keys(positions: Tensor, capacity: int, sliding_window: int | None) -> Tensor:
    """Bool [rows, 1, tokens, capacity]: a token at ``positions`` [rows, tokens] sees keys up to its own position."""
    keys = torch.arange(capacity, device=positions.device)
    visible = keys <= positions[:, None, :, None]
    if sliding_window is not None and sliding_window < capacity:
        visible = visible & (keys > positions[:, None, :, None] - sliding_window)
    return visible

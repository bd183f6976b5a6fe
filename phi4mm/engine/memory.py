"""How much memory the KV cache gets."""

from __future__ import annotations

from phi4mm.devices import free_bytes
from phi4mm.engine.kv_cache import BLOCK, KVCache
from phi4mm.engine.options import EngineOptions
from phi4mm.model.phi4mm import Phi4MMModel

_MOST_ON_CPU = 131072  # tokens, unless they are asked for: there memory is everybody's


def cache_tokens(model: Phi4MMModel, options: EngineOptions) -> int:
    """Tokens that the KV cache holds: as many as were asked for, or as fit into a share of the free memory; in whole
    blocks, and one block at least."""
    tokens = options.cache_tokens
    if tokens is None:
        free = free_bytes(model.device)
        tokens = int(free * options.cache_share) // KVCache.token_bytes(model.decoder.cache_specs(), model.dtype)
        if model.device.type == "cpu":
            tokens = min(tokens, _MOST_ON_CPU)
    return max(-(-tokens // BLOCK), 1) * BLOCK

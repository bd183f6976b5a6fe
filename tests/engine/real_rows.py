"""Rows of a tiny model through the engine's core; and without engine or cache, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from phi4mm.engine.core import Core
from phi4mm.engine.encoders import Encoders
from phi4mm.engine.kv_cache import Extent
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.row import Prompt
from phi4mm.engine.runner import Chunk, ModelRunner
from phi4mm.inputs.processor import Row
from phi4mm.model.batch import Batch
from phi4mm.model.lora import row_adapters
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import SamplingParams
from tests.engine.mock_runner import Collector


def make_core(model: Phi4MMModel, cache_tokens: int = 1 << 13, **options: Any) -> Core:
    bounds = EngineOptions(**options)
    return Core(ModelRunner(model, cache_tokens), Encoders(model, bounds), bounds)


def make_prompt(row: Row, num_tokens: int = 12, stop_token_ids: Sequence[int] = (), **sampling: Any) -> Prompt:
    params = SamplingParams(max_new_tokens=num_tokens, **sampling)
    return Prompt(row.token_ids, row.route, params, frozenset(stop_token_ids), row.media)


def run(core: Core, prompts: Sequence[Prompt]) -> list[Collector]:
    """What becomes of rows that come together."""
    sinks = [Collector() for _ in prompts]
    for prompt, sink in zip(prompts, sinks, strict=True):
        core.submit(prompt, sink)
    while core.busy:
        core.step()
    return sinks


def greedy(model: Phi4MMModel, rows: Sequence[Row], num_tokens: int = 12, **options: Any) -> list[list[int]]:
    """Each row's greedy continuation."""
    sinks = run(make_core(model, **options), [make_prompt(row, num_tokens) for row in rows])
    assert all(sink.error is None for sink in sinks)
    return [sink.tokens for sink in sinks]


@torch.no_grad()
def without_cache(model: Phi4MMModel, batch: Batch, num_tokens: int) -> list[int]:
    """The greedy continuation of a batch of one row, which is computed whole for each token."""
    embeddings = model.embed(batch)
    adapters = row_adapters([batch.routes[0].adapters], device=model.device)
    generated: list[int] = []
    for _ in range(num_tokens):
        length = embeddings.shape[1]
        positions, long = torch.arange(length)[None], model.long_rows(torch.tensor([length]))
        hidden = model.decoder(embeddings, positions, long, adapters)
        generated.append(int(model.decoder.logits(hidden[0, -1]).argmax()))
        embeddings = torch.cat((embeddings, model.decoder.embed_tokens(torch.tensor([generated[-1:]]))), dim=1)
    return generated


def make_chunk(row: Row, embedded: Sequence[torch.Tensor], extent: Extent, start: int, end: int) -> Chunk:
    """The tokens from ``start`` to ``end`` of a row; ``embedded`` are the embeddings of its media."""
    media = []
    for item, values in zip(row.media, embedded, strict=True):
        first, last = max(item.start, start), min(item.start + item.num_tokens, end)
        if first < last:
            media.append((first - start, values[first - item.start : last - item.start]))
    final = end == len(row.token_ids)
    return Chunk(extent, start, row.token_ids[start:end], media, row.route.adapters, long=False, final=final)

"""Alone equals in a batch, with a cache equals without, for rows of every modality; over a tiny random model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phi4mm.engine.encoders import encode
from phi4mm.engine.kv_cache import Arena
from phi4mm.engine.runner import ModelRunner
from phi4mm.inputs.processor import Processor, Row
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request
from tests.conftest import TINY, randomise
from tests.engine.mock_runner import Collector
from tests.engine.real_rows import greedy, make_chunk, make_core, make_prompt, run, without_cache
from tests.media import picture, speech

REQUESTS = (
    Request("Hello there"),
    Request("What is it?", images=[picture(100, 40)]),
    Request("Transcribe", audios=[speech(0.7)]),
    Request("Both", images=[picture(30, 90)], audios=[speech(1.3, 1)]),
    Request("Longer than a window", audios=[speech(3.7, 2), speech(0.4, 3)]),
    Request("A much longer question, so that the others are padded. " * 3),
    Request("Two pictures", images=[picture(60, 60), picture(130, 130)]),
    Request("The bare decoder", audios=[speech(0.5, 4)], adapter=None),
    Request("Both adapters", audios=[speech(0.5, 5)], adapter=("speech", "vision")),
)


@pytest.fixture(scope="module")
def processor(tokenizer_file: Path) -> Processor:
    return Processor(TINY, Tokenizer(tokenizer_file))


@pytest.fixture(scope="module")
def rows(processor: Processor) -> list[Row]:
    return [processor.row(request) for request in REQUESTS]


@torch.no_grad()
def test_logits_alone_equal_logits_in_a_batch(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    together = tiny_model(processor.collate(rows))
    for row, in_batch in zip(rows, together, strict=True):
        alone = tiny_model(processor.collate([row]))[0]
        error = (in_batch[: len(alone)] - alone).norm() / alone.norm()
        assert error < 1e-5, row.route


def test_tokens_alone_equal_tokens_in_a_batch_and_without_a_cache(
    tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]
) -> None:
    together = greedy(tiny_model, rows)
    for row, in_batch in zip(rows, together, strict=True):
        assert greedy(tiny_model, [row])[0] == in_batch
        assert without_cache(tiny_model, processor.collate([row]), len(in_batch)) == in_batch


def test_text_rows_equal_the_bare_decoder(tiny_model: Phi4MMModel, rows: list[Row]) -> None:
    bare = Phi4MMModel(replace(TINY, adapters=(), vision=None, speech=None)).eval().requires_grad_(False)
    bare.load_state_dict(tiny_model.state_dict(), strict=False)
    together = greedy(tiny_model, rows)
    assert [together[0], together[5]] == greedy(bare, [rows[0], rows[5]])


def test_what_lies_past_a_clip_does_not_matter(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    batch = processor.collate([rows[2], rows[4]])
    assert batch.audios is not None
    dirty = batch.audios.features.clone()
    dirty[0, batch.audios.num_frames[0] :] = 100.0
    with torch.no_grad():
        clean = tiny_model(batch)[0]
        soiled = tiny_model(replace(batch, audios=replace(batch.audios, features=dirty)))[0]
    assert torch.equal(clean, soiled)


def test_a_row_that_crosses_the_rope_range_equals_one_without_a_cache(processor: Processor, rows: list[Row]) -> None:
    config = replace(TINY, decoder=replace(TINY.decoder, original_max_positions=len(rows[2].token_ids) + 5))
    model = Phi4MMModel(config).eval().requires_grad_(False)
    randomise(model, seed=1)
    crossing, short, long = rows[2], rows[0], rows[5]
    together = greedy(model, [short, crossing, long], num_tokens=20)
    assert together[1] == without_cache(model, processor.collate([crossing]), 20)
    assert together == [greedy(model, [row], num_tokens=20)[0] for row in (short, crossing, long)]


def test_rows_end_on_their_own(tiny_model: Phi4MMModel, rows: list[Row]) -> None:
    full = greedy(tiny_model, rows[:3], num_tokens=8)
    stop = full[1][3]
    prompts = [make_prompt(rows[0], 8), make_prompt(rows[1], 8, (stop,)), make_prompt(rows[2], 2)]
    sinks = run(make_core(tiny_model), prompts)
    assert [sink.tokens for sink in sinks] == [full[0], full[1][: full[1].index(stop) + 1], full[2][:2]]
    assert [sink.reason for sink in sinks] == ["length", "stop", "length"]


def test_a_row_ends_where_the_positions_or_the_cache_end(tiny_model: Phi4MMModel, rows: list[Row]) -> None:
    config = replace(TINY, decoder=replace(TINY.decoder, max_positions=len(rows[0].token_ids) + 3))
    [sink] = run(make_core(Phi4MMModel(config).eval()), [make_prompt(rows[0], 50)])
    assert (len(sink.tokens), sink.reason) == (3, "length")
    [expected] = greedy(tiny_model, rows[:1], num_tokens=64)
    [sink] = run(make_core(tiny_model, cache_tokens=64), [make_prompt(rows[0], 200)])
    assert sink.reason == "length"
    assert sink.tokens == expected[: 64 - len(rows[0].token_ids)]


def test_prompts_in_chunks_give_the_same_logits(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    runner, arena = ModelRunner(tiny_model, 1 << 13), Arena(1 << 13)
    ordered = sorted(rows, key=lambda row: row.route.adapters)
    with torch.inference_mode():
        media = [encode(tiny_model, row.media) for row in ordered]
        every = tiny_model(processor.collate(ordered))
        expected = [logits[len(row.token_ids) - 1] for logits, row in zip(every, ordered, strict=True)]
        chunks = []
        for row, embedded in zip(ordered, media, strict=True):
            extent = arena.allocate(len(row.token_ids))
            assert extent is not None
            chunks.append(make_chunk(row, embedded, extent, 0, len(row.token_ids)))
        together = runner.prefill(chunks)
        for row, embedded, whole, last in zip(ordered, media, together, expected, strict=True):
            assert (whole - last).norm() / last.norm() < 1e-5
            extent = arena.allocate(len(row.token_ids))
            assert extent is not None
            for start in range(0, len(row.token_ids), 11):
                end = min(start + 11, len(row.token_ids))
                in_chunks = runner.prefill([make_chunk(row, embedded, extent, start, end)])
            assert (in_chunks[0] - last).norm() / last.norm() < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_tokens_do_not_depend_on_what_comes_and_goes(
    tiny_model: Phi4MMModel, rows: list[Row], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random arrivals, lengths and cancellations, in engines of random bounds: rows wait, share prefixes, make room."""
    monkeypatch.setattr("phi4mm.engine.scheduler._LOOK_AHEAD", 1 if seed % 2 else 64)  # with 1, rows have to grow
    expected = greedy(tiny_model, rows, num_tokens=40)
    random = np.random.default_rng(seed)
    longest = max(len(row.token_ids) for row in rows)
    core = make_core(
        tiny_model,
        cache_tokens=-(-(longest + 40) // 64) * 64 + 64 * int(random.integers(0, 10)),
        max_rows=int(random.integers(1, 6)),
        prefill_tokens=int(random.integers(5, 60)),
        encoder_frames=int(random.integers(50, 500)),
        encoder_crops=int(random.integers(1, 5)),
        encoder_bytes=int(random.integers(1, 1 << 16)),
    )
    coming = random.permutation(np.tile(np.arange(len(rows)), 2)).tolist()
    visits = []
    while coming or core.busy:
        for _ in range(min(int(random.integers(0, 3)), len(coming))):
            number, count, sink = coming.pop(), int(random.integers(1, 41)), Collector()
            row = core.submit(make_prompt(rows[number], count), sink)
            cancelled = bool(random.random() < 0.2)
            visits.append((number, count, sink, row, cancelled))
        core.step()
        for _, _, sink, row, cancelled in visits:
            if cancelled and sink.tokens:
                core.cancel(row)
    for number, count, sink, _, cancelled in visits:
        assert sink.error is None
        assert sink.tokens == expected[number][: 1 if cancelled else count]
    core.scheduler.drop_prefixes()
    assert core.scheduler.arena.num_used == 0


def test_sliding_window(processor: Processor, rows: list[Row]) -> None:
    config = replace(TINY, decoder=replace(TINY.decoder, sliding_window=13))
    model = Phi4MMModel(config).eval().requires_grad_(False)
    randomise(model, seed=2)
    together = greedy(model, [rows[5], rows[0], rows[2]], prefill_tokens=9)
    assert together == [without_cache(model, processor.collate([row]), 12) for row in (rows[5], rows[0], rows[2])]

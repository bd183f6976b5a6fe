"""Alone equals in a batch, with a cache equals without, for rows of every modality."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phi4mm.engine.engine import Engine, Generation, RowState, prompts
from phi4mm.engine.kv_cache import KeyValueCache
from phi4mm.engine.runner import ModelRunner, Piece
from phi4mm.engine.sampler import Sampling
from phi4mm.inputs.processor import Processor, Row
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request
from tests.conftest import TINY, randomise


def speech(seconds: float, seed: int = 0) -> tuple[np.ndarray, int]:
    """Noise with a moving pitch: every frame of its log-mel differs."""
    time = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time) + noise).astype(np.float32), 16000


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


REQUESTS = (
    Request("Hello there"),
    Request("What is it?", images=[picture(100, 40)]),
    Request("Transcribe", audios=[speech(0.7)]),
    Request("Both", images=[picture(30, 90)], audios=[speech(1.3, 1)]),
    Request("Longer than a window", audios=[speech(3.7, 2), speech(0.4, 3)]),
    Request("A much longer question, so that the others are padded. " * 3),
    Request("Two pictures", images=[picture(60, 60), picture(130, 130)]),
    Request("The bare decoder", audios=[speech(0.5, 4)], adapter=None),
)


@pytest.fixture(scope="module")
def processor(tokenizer_file: Path) -> Processor:
    return Processor(TINY, Tokenizer(tokenizer_file))


@pytest.fixture(scope="module")
def rows(processor: Processor) -> list[Row]:
    return [processor.row(request) for request in REQUESTS]


def greedy(model: Phi4MMModel, processor: Processor, rows: list[Row], num_tokens: int = 12) -> list[list[int]]:
    """Each row's greedy continuation."""
    generated: list[list[int]] = [[] for _ in rows]
    samplings = [Sampling(num_tokens) for _ in rows]
    for step in Generation(model, processor.collate(rows), samplings):
        generated[step.row].append(step.token_id)
    return generated


@torch.no_grad()
def greedy_without_cache(model: Phi4MMModel, processor: Processor, row: Row, num_tokens: int) -> list[int]:
    """The whole row again for each token."""
    embeddings = model.embed(processor.collate([row]))
    generated: list[int] = []
    for _ in range(num_tokens):
        length = embeddings.shape[1]
        hidden = model.decoder(
            embeddings,
            torch.arange(length)[None],
            model.long_rows(torch.tensor([length])),
            gate=model.gate((row.route,)),
        )
        generated.append(int(model.decoder.logits(hidden[0, -1]).argmax()))
        embeddings = torch.cat((embeddings, model.decoder.embed_tokens(torch.tensor([generated[-1:]]))), dim=1)
    return generated


@torch.no_grad()
def test_logits_alone_equal_scores_in_a_batch(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    together = tiny_model(processor.collate(rows))
    for row, in_batch in zip(rows, together, strict=True):
        alone = tiny_model(processor.collate([row]))[0]
        error = (in_batch[: len(alone)] - alone).norm() / alone.norm()
        assert error < 1e-5, row.route


def test_tokens_alone_equal_tokens_in_a_batch_and_without_a_cache(
    tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]
) -> None:
    together = greedy(tiny_model, processor, rows)
    for row, in_batch in zip(rows, together, strict=True):
        assert greedy(tiny_model, processor, [row])[0] == in_batch
        assert greedy_without_cache(tiny_model, processor, row, len(in_batch)) == in_batch


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
    together = greedy(model, processor, [short, crossing, long], num_tokens=20)
    assert together[1] == greedy_without_cache(model, processor, crossing, 20)
    assert together == [greedy(model, processor, [row], num_tokens=20)[0] for row in (short, crossing, long)]


def test_rows_end_on_their_own(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    full = greedy(tiny_model, processor, rows[:3], num_tokens=8)
    stop = full[1][3]
    samplings = [Sampling(8), Sampling(8, stop_token_ids=(stop,)), Sampling(2)]
    steps: dict[int, list[int]] = {0: [], 1: [], 2: []}
    reasons = {}
    for step in Generation(tiny_model, processor.collate(rows[:3]), samplings):
        steps[step.row].append(step.token_id)
        reasons[step.row] = step.finish_reason
    assert steps == {0: full[0], 1: full[1][: full[1].index(stop) + 1], 2: full[2][:2]}
    assert reasons == {0: "length", 1: "stop", 2: "length"}


def test_a_stopped_row_gives_no_more_tokens(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    generation = Generation(tiny_model, processor.collate(rows[:2]), [Sampling(6)] * 2)
    seen = []
    for step in generation:
        seen.append(step.row)
        if seen.count(0) == 2:
            generation.stop(0)
    assert (seen.count(0), seen.count(1)) == (2, 6)


def test_a_row_ends_where_the_positions_end(processor: Processor, rows: list[Row]) -> None:
    config = replace(TINY, decoder=replace(TINY.decoder, max_positions=len(rows[0].token_ids) + 3))
    model = Phi4MMModel(config).eval()
    steps = list(Generation(model, processor.collate(rows[:1]), [Sampling(50)]))
    assert (len(steps), steps[-1].finish_reason) == (3, "length")


def test_a_dropped_stream_leaves_nothing(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    generation = Generation(tiny_model, processor.collate(rows[:1]), [Sampling(50)])
    steps = iter(generation)
    next(steps)
    del steps, generation
    gc.collect()
    assert not any(type(kept) in (RowState, KeyValueCache) for kept in gc.get_objects())


def test_prompts_in_pieces_give_the_same_logits(tiny_model: Phi4MMModel, processor: Processor, rows: list[Row]) -> None:
    batch = processor.collate(rows)
    whole = ModelRunner(tiny_model, len(rows))
    prompts_ = prompts(tiny_model, batch, [Sampling(1)] * len(rows))
    with torch.no_grad():
        expected = tiny_model(batch)
        logits = whole.prefill(
            [Piece(slot, 0, prompt.embeddings, prompt.route, False, True) for slot, prompt in enumerate(prompts_)]
        )
        for slot, prompt in enumerate(prompts_):
            last = expected[slot, len(prompt.token_ids) - 1]
            assert (logits[slot] - last).norm() / last.norm() < 1e-5
            pieces = prompt.embeddings.split(11)
            for index, piece in enumerate(pieces):
                final = index == len(pieces) - 1
                in_pieces = whole.prefill([Piece(3, 11 * index, piece, prompt.route, False, final)])
            assert (in_pieces[0] - last).norm() / last.norm() < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_tokens_do_not_depend_on_what_comes_and_goes(
    tiny_model: Phi4MMModel, processor: Processor, rows: list[Row], seed: int
) -> None:
    expected = greedy(tiny_model, processor, rows)
    random = np.random.default_rng(seed)
    engine = Engine(ModelRunner(tiny_model, 3), prefill_tokens=int(random.integers(5, 60)))
    order = random.permutation(len(rows)).tolist()
    lengths = random.integers(1, 13, len(rows)).tolist()
    waiting = [(row, prompts(tiny_model, processor.collate([rows[row]]), [Sampling(lengths[row])])[0]) for row in order]
    names: dict[int, int] = {}
    tokens: dict[int, list[int]] = {row: [] for row in order}
    while waiting or engine.busy:
        for _ in range(min(int(random.integers(0, 3)), len(waiting))):
            row, prompt = waiting.pop()
            names[engine.submit(prompt)] = row
        for step in engine.step():
            tokens[names[step.row]].append(step.token_id)
    assert tokens == {row: expected[row][: lengths[row]] for row in order}


def test_sliding_window(processor: Processor, rows: list[Row]) -> None:
    config = replace(TINY, decoder=replace(TINY.decoder, sliding_window=13))
    model = Phi4MMModel(config).eval().requires_grad_(False)
    randomise(model, seed=2)
    prompt = prompts(model, processor.collate([rows[5]]), [Sampling(12)])[0]
    engine = Engine(ModelRunner(model, 1), prefill_tokens=9)
    engine.submit(prompt)
    tokens = []
    while engine.busy:
        tokens += [step.token_id for step in engine.step()]
    assert tokens == greedy_without_cache(model, processor, rows[5], 12)

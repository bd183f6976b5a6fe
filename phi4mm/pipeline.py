"""From many requests to their replies: media are read in threads while earlier rows are decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from phi4mm.answer import Answer
from phi4mm.engine.engine import PREFILL_TOKENS, Engine, MakeRunner, prompts
from phi4mm.engine.runner import ModelRunner
from phi4mm.engine.sampler import Sampling
from phi4mm.errors import Phi4MMError
from phi4mm.inputs.processor import Processor, Row
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Reply, Request

Prepare = Callable[[], tuple[Request, Row]]

_PREFILL_A_SLOT = 16  # prompt tokens run between two decoding steps: rows that end are replaced in time
_AHEAD = 4  # batches of rows that are read ahead of decoding
_MOST_TOKENS = 32768  # of the rows that are embedded at once, padded: their embeddings take memory until they are run


def answer_all(
    model: Phi4MMModel,
    processor: Processor,
    jobs: Sequence[Prepare],
    *,
    batch_size: int,
    make_runner: MakeRunner = ModelRunner,
) -> list[Reply | Phi4MMError]:
    """Answer every job, in any order, and return the replies in the jobs' order.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
        jobs: each reads a request's media; called in a thread.
        batch_size: the most rows decoded together.
        make_runner: of the model and a number of slots.

    Returns:
        For each job its reply, or the ``Phi4MMError`` that it raised.
    """
    results: dict[int, Reply | Phi4MMError] = {}
    if not jobs:
        return []
    num_slots = min(batch_size, len(jobs))
    prefill_tokens = max(PREFILL_TOKENS, _PREFILL_A_SLOT * num_slots)
    engine = Engine(make_runner(model, num_slots), prefill_tokens=prefill_tokens)
    answers: dict[int, tuple[int, Answer]] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(jobs), batch_size)) as pool:
        unread = deque(enumerate(jobs))
        reading: deque[tuple[int, Future[tuple[Request, Row]]]] = deque()
        try:
            while unread or reading or engine.busy:
                while unread and len(reading) < _AHEAD * batch_size:
                    index, job = unread.popleft()
                    reading.append((index, pool.submit(job)))
                group = _ready(reading, results, least=0 if engine.busy else batch_size) if engine.num_free else []
                answers.update(_submit(model, processor, engine, group))
                for step in engine.step():
                    index, answer = answers[step.row]
                    answer.push(step)
                    if answer.finished:
                        engine.cancel(step.row)
                        results[index] = answers.pop(step.row)[1].reply()
        finally:
            for _, future in reading:
                future.cancel()
    return [results[index] for index in range(len(jobs))]


def _ready(
    reading: deque[tuple[int, Future[tuple[Request, Row]]]], results: dict[int, Reply | Phi4MMError], *, least: int
) -> list[tuple[int, Request, Row]]:
    """Take the rows that are read, up to ``_MOST_TOKENS``, the longest first; errors go to ``results``.

    The towers take all of them at once: the more there are, the better their lengths match, and rows that are decoded
    together had best be of similar length, too. So ``least`` rows are waited for where nothing is decoded meanwhile.
    """
    group: list[tuple[int, Request, Row]] = []
    longest = 0
    while reading and (reading[0][1].done() or len(group) < least):
        index, future = reading[0]
        try:
            request, row = future.result()
        except Phi4MMError as error:
            results[index] = error
        else:
            longest = max(longest, len(row.token_ids))
            if group and longest * (len(group) + 1) > _MOST_TOKENS:
                break
            group.append((index, request, row))
        reading.popleft()
    return sorted(group, key=lambda read: -len(read[2].token_ids))


def _submit(
    model: Phi4MMModel, processor: Processor, engine: Engine, group: Sequence[tuple[int, Request, Row]]
) -> dict[int, tuple[int, Answer]]:
    """Encode the media of some rows and queue them: the engine's row -> the job's index and its answer."""
    if not group:
        return {}
    batch = processor.collate([row for _, _, row in group])
    samplings = [sampling_of(request, model) for _, request, _ in group]
    return {
        engine.submit(prompt): (index, answer_of(request, row, model, processor))
        for prompt, (index, request, row) in zip(prompts(model, batch, samplings), group, strict=True)
    }


def answer_of(request: Request, row: Row, model: Phi4MMModel, processor: Processor) -> Answer:
    """The empty answer to a request."""
    return Answer(row, processor.tokenizer, request.stop, model.config.decoder.stop_token_ids)


def sampling_of(request: Request, model: Phi4MMModel) -> Sampling:
    """How a request's tokens are chosen."""
    return Sampling(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop_token_ids=model.config.decoder.stop_token_ids,
    )

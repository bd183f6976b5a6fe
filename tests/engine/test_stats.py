"""What the engine reports of itself."""

from __future__ import annotations

import time

from phi4mm.api import Phi4MM
from phi4mm.types import Request, SamplingParams


def test_rows_are_counted_while_they_run(tiny: Phi4MM) -> None:
    handle = tiny.submit(
        {"text": "hello", "max_new_tokens": 2000, "logit_bias": {261: -100, 256: -100}, "adapter": "speech"}
    )
    next(iter(handle))
    running = tiny.stats()
    assert (running.running, running.waiting, running.running_adapters) == (1, 0, ("speech",))
    assert 0 < running.used_tokens <= running.cache_tokens
    handle.cancel()
    end = time.monotonic() + 10
    while tiny.stats().running and time.monotonic() < end:
        time.sleep(0.01)
    assert (tiny.stats().running, tiny.stats().running_adapters) == (0, ())


def test_log_probabilities_come_with_the_tokens(tiny: Phi4MM) -> None:
    handle = tiny.submit({"text": "hello", "max_new_tokens": 8, "logprobs": 1})
    reply = handle.result()
    assert handle.logprobs() == reply.logprobs
    assert handle.logprobs(3) == (reply.logprobs or ())[3:]
    assert tiny.submit({"text": "hello", "max_new_tokens": 2}).logprobs() == ()


def test_a_prompt_that_is_read_already(tiny: Phi4MM) -> None:
    request = Request("hello", sampling=SamplingParams(max_new_tokens=4))
    assert tiny.submit(request, tiny.processor.row(request)).result() == tiny.submit(request).result()

"""Sampling as requests ask for it: the same alone and in any batch, and what the model's logits say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from phi4mm import Phi4MM, Phi4MMError, PromptError, Request
from phi4mm.model.lora import row_adapters
from phi4mm.types import Reply
from tests.media import picture, speech

MEDIA: list[dict[str, Any]] = [{}, {"images": [picture(40, 50)]}, {"audios": [speech(0.5)]}, {"adapter": "speech"}]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    {"temperature": 1.3, "min_p": 0.01, "repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {65: 3.0}},
    {"repetition_penalty": 1.5},
    {"banned_tokens": [65, 66]},
]


@torch.no_grad()
def logits_of(model: Phi4MM, request: Request, reply: Reply) -> torch.Tensor:
    """The logits from which each token of a reply was chosen [tokens, vocabulary], computed without the engine."""
    row = model.processor.row(request)
    new = model.model.decoder.embed_tokens(torch.tensor([reply.token_ids]))
    embeddings = torch.cat((model.model.embed(model.processor.collate([row])), new), dim=1)
    positions, short = torch.arange(embeddings.shape[1])[None], torch.tensor([False])
    adapters = row_adapters([row.route.adapters], device="cpu")
    hidden = model.model.decoder(embeddings, positions, short, adapters)
    return model.model.decoder.logits(hidden[0, len(row.token_ids) - 1 : -1])


def test_a_seeded_row_is_the_same_alone_and_in_any_batch(tiny: Phi4MM) -> None:
    requests = [
        Request.make("Hello", max_new_tokens=10, seed=number, logprobs=3, **media, **sampling)
        for number, (media, sampling) in enumerate((one, other) for one in MEDIA for other in SAMPLINGS)
    ]
    together = tiny.chat_batch(requests, batch_size=64)
    assert tiny.chat_batch(requests[::-1], batch_size=5) == together[::-1]
    assert [tiny.chat_batch([request])[0] for request in requests] == together
    assert len({reply.token_ids for reply in together}) > 15


def test_penalties_bias_and_bans_change_the_tokens_as_they_say(tiny: Phi4MM) -> None:
    plain = tiny.chat("Hello", max_new_tokens=40).token_ids
    first = plain[0]
    assert first not in tiny.chat("Hello", max_new_tokens=40, banned_tokens=[first]).token_ids
    assert tiny.chat("Hello", max_new_tokens=5, logit_bias={77: 100.0}).token_ids == (77,) * 5
    penalised = tiny.chat("Hello", max_new_tokens=40, frequency_penalty=2.0, presence_penalty=2.0).token_ids
    assert len(set(penalised)) > len(set(plain))
    assert tiny.chat("Hello", max_new_tokens=40, repetition_penalty=1.0).token_ids == plain
    stopped = tiny.chat("Hello", max_new_tokens=40, stop_token_ids=[plain[6]])
    assert stopped.token_ids == plain[: plain.index(plain[6])]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("media", MEDIA)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_those_of_the_models_logits(tiny: Phi4MM, media: dict[str, Any], temperature: float) -> None:
    options = {"max_new_tokens": 6, "temperature": temperature, "seed": 1, "logit_bias": {70: 2.0}, "logprobs": 5}
    request = Request.make("Hello", **media, **options)
    [reply, _] = tiny.chat_batch([request, {"text": "Other", "max_new_tokens": 9}])
    assert reply.logprobs is not None
    assert tuple(token.token_id for token in reply.logprobs) == reply.token_ids
    expected = logits_of(tiny, request, reply).log_softmax(-1)
    for token, logprobs in zip(reply.logprobs, expected, strict=True):
        values, ids = logprobs.topk(5)
        assert token.logprob == pytest.approx(float(logprobs[token.token_id]), abs=1e-4)
        assert [number for number, _ in token.top] == ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)
    plain = tiny.chat("Hello", max_new_tokens=3)
    assert plain.logprobs is None
    none_on_top = tiny.chat("Hello", max_new_tokens=3, logprobs=0).logprobs
    assert none_on_top is not None
    assert [token.top for token in none_on_top] == [()] * 3


def test_a_processor_sees_the_rows_logits_and_chooses(tiny: Phi4MM) -> None:
    seen: list[tuple[int, ...]] = []

    def next_letter(token_ids: Any, logits: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(token_ids))
        chosen = torch.full_like(logits, float("-inf"))
        chosen[65 + len(token_ids)] = 0.0
        return chosen

    reply, other = tiny.chat_batch(
        [{"text": "Hello", "max_new_tokens": 4, "processors": [next_letter]}, {"text": "x", "max_new_tokens": 4}]
    )
    assert reply.token_ids == (65, 66, 67, 68)
    assert seen == [(), (65,), (65, 66), (65, 66, 67)]
    assert other == tiny.chat("x", max_new_tokens=4)


def fails(token_ids: Any, logits: torch.Tensor) -> torch.Tensor:
    if len(token_ids) == 2:
        raise RuntimeError("the hook has a fault")
    return logits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processors": [fails]}, "the hook has a fault"),
        ({"processors": [lambda token_ids, logits: logits[:5]]}, r"shape \(5,\)"),
        ({"processors": [lambda token_ids, logits: None]}, "NoneType"),
        ({"processors": [lambda token_ids, logits: logits * float("nan")]}, "NaN"),
        ({"banned_tokens": range(272)}, "no token is left"),
    ],
)
def test_sampling_that_fails_ends_its_row_alone(tiny: Phi4MM, options: dict[str, Any], message: str) -> None:
    good = [{"text": f"Hello {number}", "max_new_tokens": 8} for number in range(3)]
    expected = tiny.chat_batch(good)
    handles = [tiny.submit(request) for request in good]
    with pytest.raises(Phi4MMError, match=message):
        tiny.chat("Hello", max_new_tokens=8, **options)
    bad = tiny.submit({"text": "Hello", "max_new_tokens": 8, "n": 2, **options})
    assert all(isinstance(one.exception(20), Phi4MMError) for one in (bad, *bad.alternatives))
    assert [handle.result(20) for handle in handles] == expected


def test_a_badly_typed_option_costs_its_request_alone(tiny: Phi4MM) -> None:
    good: dict[str, Any] = {"text": "Hello", "max_new_tokens": 3}
    wrong: list[dict[str, Any]] = [
        {"seed": "7"},
        {"stop": None},
        {"history": None},
        {"temperature": float("nan")},
        {"tools": 5},
        {"no": 1},
    ]
    with pytest.raises(PromptError) as caught:
        tiny.chat_batch([good], batch_size="2")  # type: ignore[arg-type]
    assert "batch_size" in str(caught.value)
    with pytest.raises(Phi4MMError) as batch:
        tiny.chat_batch([good, *({**good, **one} for one in wrong), good])
    errors: dict[int, Phi4MMError] = batch.value.errors  # type: ignore[attr-defined]
    assert list(errors) == list(range(1, len(wrong) + 1))
    for one, error in zip(wrong, errors.values(), strict=True):
        assert isinstance(error, PromptError)
        assert next(iter(one)) in str(error)
    results = batch.value.results  # type: ignore[attr-defined]
    assert results[0] == results[-1] == tiny.chat(**good)

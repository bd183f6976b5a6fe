"""Requests and how they are decoded: bad values are refused where they are handed in, by name."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from phi4mm.errors import PromptError
from phi4mm.options import DecodingOptions, RequestOptions, SamplingOptions
from phi4mm.transcript import Segment, Transcript, Word
from phi4mm.types import Modality, Request, Route, SamplingParams

BAD_NUMBERS = ["1", None, True, math.nan, math.inf, -math.inf, [1], 1j, 10**400]
BAD_WHOLE = [*BAD_NUMBERS, 1.5, 1.0]
BAD_LISTS = [None, 5, {3: 1}, {3}, iter([3])]
BAD_SAMPLING: dict[str, list[Any]] = {
    "max_new_tokens": [0, -1, *(value for value in BAD_WHOLE if value != 10**400)],
    "temperature": [-0.1, 101, *BAD_NUMBERS],
    "top_p": [0, 0.0, -0.1, 1.1, *BAD_NUMBERS],
    "top_k": [-1, *(value for value in BAD_WHOLE if value != 10**400)],
    "min_p": [-0.1, 1.1, *BAD_NUMBERS],
    "repetition_penalty": [0, -1.0, 101, *BAD_NUMBERS],
    "presence_penalty": [-2.1, 2.1, *BAD_NUMBERS],
    "frequency_penalty": [-2.1, 2.1, *BAD_NUMBERS],
    "logit_bias": [None, [1], [(1, 2.0)], "x", 5, {"1": 1.0}, {-1: 1.0}, {1.5: 1.0}, {1: 101}, {1: "2"}, {1: math.nan}],
    "banned_tokens": [*BAD_LISTS, "5", b"5", ["5"], [-1], [1.5], [True], [None]],
    "stop": [*BAD_LISTS, "x", b"x", [""], [5], [None], ["x", b"y"]],
    "stop_token_ids": [*BAD_LISTS, "5", ["5"], [-1], [1.5], [True]],
    "logprobs": [-1, 21, "3", True, 1.5, math.nan],
    "n": [0, 129, *BAD_WHOLE],
    "seed": ["7", 1.5, 2**70, 2**64, -(2**63) - 1, math.nan, True, [7]],
    "processors": [*BAD_LISTS, len, "x", [5], [None]],
    "output": [{}, {"type": "object"}, "json", 5, True],
}
BAD_REQUESTS: dict[str, list[Any]] = {
    "text": [None, 5, b"x", ["x"]],
    "images": [None, "cat.png", b"png", 5, {"a": 1}, np.zeros((8, 8, 3))],
    "audios": [None, "a.wav", b"wav", 5, np.zeros(16000)],
    "system": [5, b"x", ["x"], True],
    "history": [None, "x", 5, {"role": "user", "content": "x"}],
    "tools": [None, "x", 5, {"name": "x"}],
    "tool_choice": [
        None,
        5,
        "any",
        "required",
        ["f"],
        {},
        {"name": 5},
        {"name": "f"},
        {"name": "f", "mode": "auto"},
        {"allowed": []},
        {"allowed": "f", "mode": "auto"},
        {"allowed": ["f"], "mode": "none"},
        {"allowed": [5], "mode": "auto"},
        {"allowed": [], "mode": "auto"},
    ],
    "parallel_tool_calls": [None, 1, "yes"],
    "adapter": [0, 5, 1.5, True, False, [], ["speech"], ("speech", 5), ("speech", None), b"speech"],
    "sampling": [None, {}, {"temperature": 1.0}, 5],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{value!r:.20}") for name, values in table.items() for value in values]


def check_message(error: PromptError, name: str) -> None:
    message = str(error)
    assert message.startswith(name)
    assert "expected" in message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(("name", "value"), cases(BAD_SAMPLING))
def test_bad_sampling(name: str, value: Any) -> None:
    for make in (SamplingParams, lambda **option: Request.of({"text": "x", **option})):
        with pytest.raises(PromptError) as caught:
            make(**{name: value})
        check_message(caught.value, name)


@pytest.mark.parametrize(("name", "value"), cases(BAD_REQUESTS))
def test_bad_requests(name: str, value: Any) -> None:
    for make in (Request, lambda **option: Request.of(option)):
        with pytest.raises(PromptError) as caught:
            make(**{"text": "x", name: value})
        check_message(caught.value, name)


def test_every_field_has_bad_values() -> None:
    assert set(BAD_SAMPLING) == {field.name for field in fields(SamplingParams)}
    assert set(BAD_REQUESTS) == {field.name for field in fields(Request)}


def test_values_at_the_bounds() -> None:
    SamplingParams(
        max_new_tokens=1,
        temperature=100,
        top_p=1,
        min_p=1,
        repetition_penalty=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={0: -100, 200063: 100.0},
        banned_tokens=range(3),
        stop=["\n"],
        stop_token_ids=(0,),
        logprobs=20,
        n=128,
        seed=2**64 - 1,
        processors=(max,),
    )
    SamplingParams(logprobs=0, seed=-(2**63), top_k=10**9)
    assert SamplingParams().is_greedy
    assert not SamplingParams(temperature=0.1).is_greedy


@pytest.mark.parametrize("adapter", ["auto", None, "speech", "auto+mine", ("speech", "mine"), ()])
def test_adapters(adapter: Any) -> None:
    assert Request("x", adapter=adapter).adapter == adapter


@pytest.mark.parametrize("options", [{}, {"text": " \n"}, {"tools": [{"name": "x"}]}, {"system": ""}])
def test_an_empty_request(options: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="the request is empty; expected"):
        Request(**options)


def test_requests_from_dicts_with_flat_options() -> None:
    base = SamplingParams(top_k=5, seed=1)
    request = Request.of({"text": "x", "audios": ["a.wav"], "temperature": 0.5, "seed": 2, "sampling": base})
    assert request == Request("x", audios=["a.wav"], sampling=SamplingParams(top_k=5, seed=2, temperature=0.5))
    assert Request.of(request) is request
    assert Request.make("x", n=2).sampling == SamplingParams(n=2)
    assert base == SamplingParams(top_k=5, seed=1)


@pytest.mark.parametrize("key", ["temprature", "cls", "self", 5])
def test_unknown_keys(key: Any) -> None:
    with pytest.raises(PromptError, match=f"unknown keys {key}; known are text, images.*, processors"):
        Request.of({"text": "x", key: 1})


@pytest.mark.parametrize("value", [None, "text", 5, ["text"]])
def test_a_request_of_another_type(value: Any) -> None:
    with pytest.raises(PromptError, match=f"a request is a {type(value).__name__}; expected a Request or a dict"):
        Request.of(value)


def test_the_typed_options_are_the_fields() -> None:
    sampling, request = get_type_hints(SamplingParams), get_type_hints(Request)
    assert get_type_hints(SamplingOptions) == sampling
    del request["text"]
    assert get_type_hints(RequestOptions) == request | sampling
    own = {"adapter", "sampling"}
    assert get_type_hints(DecodingOptions) == {name: request[name] for name in own} | sampling


def test_routes_and_modalities() -> None:
    assert Modality.of(has_images=True, has_audios=True) == "image+audio"
    assert Modality.of(has_images=False, has_audios=False) == "text"
    with pytest.deprecated_call():
        assert Route(("speech", "mine")).adapter == "speech+mine"
    with pytest.deprecated_call():
        assert Route().adapter is None


def test_transcripts_survive_a_round_trip() -> None:
    words = (Word("hello", 0.1, 0.4),)
    transcript = Transcript.of([Segment(0.0, 1.0, "hello", words=words), Segment(1.0, 2.0, "there")], 2.5)
    assert transcript.text == "hello there"
    assert Transcript.from_dict(transcript.to_dict() | {"later": 1}) == transcript


def test_types_do_not_import_torch() -> None:
    code = "import sys, phi4mm.types; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        max_new_tokens=np.int64(3),  # type: ignore[arg-type]
        temperature=np.float32(0.5),
        seed=np.uint64(2**63),  # type: ignore[arg-type]
        banned_tokens=[np.int32(4)],  # type: ignore[list-item]
        logit_bias={np.int64(1): np.float32(2)},  # type: ignore[dict-item]
    )
    assert params == SamplingParams(
        max_new_tokens=3, temperature=0.5, seed=2**63, banned_tokens=[4], logit_bias={1: 2.0}
    )
    assert [type(value) for value in (params.max_new_tokens, params.temperature, params.seed)] == [int, float, int]


def test_stop_strings_are_bounded() -> None:
    SamplingParams(stop=["x" * 1000] * 64)
    with pytest.raises(PromptError, match="stop has 65 items; expected at most 64"):
        SamplingParams(stop=["x"] * 65)
    with pytest.raises(PromptError, match=r"stop is 'xxx.*at most 1000 characters"):
        SamplingParams(stop=["x" * 1001])
    with pytest.raises(PromptError, match="banned_tokens has 1000000000000 items"):
        SamplingParams(banned_tokens=range(10**12))


def test_token_ids_are_in_the_vocabulary() -> None:
    good = {"stop_token_ids": [99], "banned_tokens": [99], "logit_bias": {99: 1.0}}
    SamplingParams(**good).check_vocabulary(100)  # type: ignore[arg-type]
    for name in good:
        with pytest.raises(PromptError, match=f"{name}: token id 99; expected 0 to 98"):
            SamplingParams(**{name: good[name]}).check_vocabulary(99)  # type: ignore[arg-type]


def test_rounding_does_not_make_segments_differ() -> None:
    assert Segment(0.0, 1.0, "x", avg_logprob=-0.5) == Segment(0.0, 1.0, "x", avg_logprob=-0.25)

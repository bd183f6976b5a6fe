"""Tool calls keep to the tools and their parameters from where they begin, or from the first token on."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import torch

from phi4mm import Phi4MM
from phi4mm.inputs.tools import arguments_schema
from phi4mm.types import Reply
from tests.conftest import CONTROL_IDS

BEGIN, END = "<|tool_call|>", "<|/tool_call|>"
POINT = {
    "type": "object",
    "properties": {
        "x": {"$ref": "#/$defs/axis"},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["]", "}"]}},
    },
    "required": ["x", "tags"],
    "$defs": {"axis": {"type": "integer", "minimum": -9, "maximum": 9}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": 'm"ove/é', "description": "moves", "strict": True, "parameters": POINT}},
    {"name": "stop", "parameters": {"hard": {"description": "at once", "type": "bool"}}},
    {"name": "wait"},
]
SCHEMAS = {
    'm"ove/é': arguments_schema(TOOLS[0]["function"]),
    "stop": arguments_schema(TOOLS[1]),
    "wait": {"type": "object"},
}
ANY: dict[str, Any] = {"text": "Hello", "tools": TOOLS, "max_new_tokens": 300, "temperature": 3.0}
CLOSING = {ord("]") - 33: 3.0, ord("}") - 33: 8.0}  # token id: that of the character less 33


def calls_of(reply: Reply) -> list[dict[str, Any]]:
    """The calls of a reply that is nothing else, checked against the tools."""
    text = reply.text
    assert text.startswith(BEGIN)
    assert text.endswith(END)
    calls: list[dict[str, Any]] = json.loads(text.removeprefix(BEGIN).removesuffix(END))
    assert reply.finish_reason == "tool_calls"
    assert list(reply.tool_calls) == calls
    for call in calls:
        assert list(call) == ["name", "arguments"]
        jsonschema.validate(call["arguments"], SCHEMAS[call["name"]])
    return calls


def many(tiny: Phi4MM, **options: Any) -> list[Reply]:
    """Finished replies with different seeds."""
    requests = [{**ANY, "logit_bias": CLOSING, "seed": seed, **options} for seed in range(12)]
    finished = [reply for reply in tiny.chat_batch(requests) if reply.finish_reason != "length"]
    assert len(finished) > 3
    return finished


def test_required(tiny: Phi4MM) -> None:
    calls = [calls_of(reply) for reply in many(tiny, tool_choice="required")]
    assert {call["name"] for some in calls for call in some} == set(SCHEMAS)
    assert max(map(len, calls)) > 1
    assert {len(calls_of(one)) for one in many(tiny, tool_choice="required", parallel_tool_calls=False)} == {1}


def test_named_and_allowed(tiny: Phi4MM) -> None:
    for reply in many(tiny, tool_choice={"name": 'm"ove/é'}):
        assert {call["name"] for call in calls_of(reply)} == {'m"ove/é'}
    for reply in many(tiny, tool_choice={"allowed": ["stop", "wait"], "mode": "required"}):
        assert {call["name"] for call in calls_of(reply)} <= {"stop", "wait"}


def test_auto_is_free_until_a_call_begins(tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [ANY | {"temperature": 1.0, "max_new_tokens": 30, "seed": seed} for seed in range(6)]
    held = tiny.chat_batch(requests)
    monkeypatch.setattr(tiny._client.grammars, "constraint", lambda request: None)
    for reply, free in zip(held, tiny.chat_batch(requests), strict=True):
        until = (*free.token_ids, CONTROL_IDS[BEGIN]).index(CONTROL_IDS[BEGIN])
        assert reply.token_ids[:until] == free.token_ids[:until]


@pytest.mark.parametrize("choice", ["auto", {"allowed": ["stop", "wait"], "mode": "auto"}])
@pytest.mark.parametrize("prefix", ["", "I call ", "functool"])
@pytest.mark.parametrize("marker", [BEGIN, "functools["])
def test_auto_holds_from_the_marker_on(tiny: Phi4MM, marker: str, prefix: str, choice: Any) -> None:
    encode = tiny.processor.tokenizer.encode
    half_a_character = encode("é")[:1]
    begin = half_a_character + encode(prefix) + ([CONTROL_IDS[BEGIN]] if marker == BEGIN else encode(marker))

    def writes(token_ids: Any, logits: torch.Tensor) -> torch.Tensor:
        if len(token_ids) < len(begin):
            logits.fill_(-1e4)[begin[len(token_ids)]] = 0.0
        return logits

    for reply in many(tiny, tool_choice=choice, processors=[writes]):
        _, found, after = reply.text.rpartition(marker)
        assert found
        calls = json.loads(after.removesuffix(END)) if marker == BEGIN else json.loads("[" + after)
        assert calls
        for call in calls:
            jsonschema.validate(call["arguments"], SCHEMAS[call["name"]])
            assert choice == "auto" or call["name"] in choice["allowed"]
        inside_a_word = marker != BEGIN and prefix == "functool"
        assert reply.finish_reason == ("stop" if inside_a_word else "tool_calls")


def test_none_calls_nothing(tiny: Phi4MM) -> None:
    bias = {CONTROL_IDS[BEGIN]: 100.0}
    assert BEGIN in tiny.chat(**ANY, logit_bias=bias).text
    reply = tiny.chat(**ANY | {"max_new_tokens": 30, "seed": 1}, tool_choice="none", logit_bias=bias)
    assert reply.tool_calls == ()
    assert BEGIN not in reply.text
    assert reply.usage.prompt_tokens == tiny.chat("Hello", max_new_tokens=1).usage.prompt_tokens


def test_an_output_format_beside_tools(tiny: Phi4MM) -> None:
    """In auto the reply is either; where a call is required it is that."""
    kinds = set()
    for reply in many(tiny, response_format={"enum": ["yes", "no"]}, logit_bias=CLOSING | {CONTROL_IDS[BEGIN]: 2.0}):
        kinds.add(reply.finish_reason)
        if reply.text not in ('"yes"', '"no"'):
            calls_of(reply)
    assert kinds == {"stop", "tool_calls"}
    for reply in many(tiny, response_format={"enum": ["yes", "no"]}, tool_choice="required"):
        calls_of(reply)


def test_keywords_that_are_not_supported_are_passed_over(tiny: Phi4MM) -> None:
    """As tools of other programs have them; where the tool is strict they are refused (test_grammar)."""
    parameters = {
        "type": "object",
        "properties": {"a": {"oneOf": [{"const": 1}, {"const": 2}]}, "b": {"type": "string", "format": "colour"}},
        "required": ["a"],
        "not": {"required": ["b"]},
    }
    reply = tiny.chat(
        "Hello", tools=[{"name": "f", "parameters": parameters}], tool_choice="required", logit_bias=CLOSING
    )
    assert reply.tool_calls[0]["arguments"]["a"] in (1, 2)

"""Tools, calls and results in OpenAI's form and in the model card's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phi4mm import PromptError, Request
from phi4mm.inputs.prompt import render
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.inputs.tools import arguments_schema, callable_tools, flatten_tools, must_call
from tests.conftest import CONTROL_IDS

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPENAI = {"type": "function", "function": {"name": "f", "description": "d", "parameters": CITY, "strict": True}}
FLAT = {"name": "f", "description": "d", "parameters": CITY}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


def readable(tokenizer: Tokenizer, request: Request) -> str:
    names = {token_id: name for name, token_id in CONTROL_IDS.items()}
    return "".join(
        names.get(piece, "") or tokenizer.decode([piece])
        for piece in render(request, tokenizer)
        if isinstance(piece, int)
    )


def test_openais_form_is_flattened() -> None:
    for tool in (OPENAI, FLAT, FLAT | {"strict": False}, FLAT | {"type": "function"}):
        assert flatten_tools([tool]) == [FLAT]


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([{"description": "x"}], ("tool 1", "no name")),
        ([FLAT, {"type": "function", "function": {}}], ("tool 2", "no name")),
        ([FLAT, OPENAI], ("two", "'f'")),
        ([{"name": 5}], ("tool 1", "no name")),
        ([{"name": "f", "parameters": {1, 2}}], ("tool 1", "JSON")),
    ],
)
def test_bad_tools(tools: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(PromptError) as caught:
        flatten_tools(tools)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (None, {"type": "object"}),
        ({}, {"type": "object"}),
        (CITY, CITY | {"additionalProperties": False}),
        (CITY | {"additionalProperties": True}, CITY | {"additionalProperties": True}),
        ({"$ref": "#/$defs/a", "$defs": {"a": CITY}}, {"$ref": "#/$defs/a", "$defs": {"a": CITY}}),
        (
            {
                "city": {"description": "c", "type": "str", "default": "Oslo"},
                "days": {"description": "n", "type": "int, optional"},
                "type": {"description": "any"},
                "size": {"type": "integer", "minimum": 1},
            },
            {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "type": {},
                    "size": {"type": "integer", "minimum": 1},
                },
                "required": ["days", "type", "size"],
                "additionalProperties": False,
            },
        ),
    ],
)
def test_the_schema_of_arguments(parameters: Any, schema: Any) -> None:
    assert arguments_schema({"name": "f", "parameters": parameters}) == schema


def test_bad_parameters() -> None:
    with pytest.raises(PromptError, match="the parameters of 'f' are 5; expected"):
        arguments_schema({"name": "f", "parameters": 5})


@pytest.mark.parametrize(
    ("choice", "names", "must"),
    [
        ("auto", ["f", "g"], False),
        ("required", ["f", "g"], True),
        ({"name": "g"}, ["g"], True),
        ({"allowed": ["g"], "mode": "auto"}, ["g"], False),
        ({"allowed": ["g", "f"], "mode": "required"}, ["f", "g"], True),
        ("none", [], False),
    ],
)
def test_which_tools_may_be_called(choice: Any, names: list[str], must: bool) -> None:
    request = Request("x", tools=[FLAT, {"name": "g"}], tool_choice=choice)
    assert list(callable_tools(request)) == names
    assert must_call(request) is must


CALLS = [
    {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"city": "<|end|>"}'}},
    {"id": "a", "type": "function", "function": {"name": "g", "arguments": ""}},
]


def test_calls_and_results_are_rendered(tokenizer: Tokenizer) -> None:
    calls = (
        '<|tool_call|>[{"name": "f", "arguments": {"city": "<|end|>"}}, {"name": "g", "arguments": {}}]<|/tool_call|>'
    )
    history: list[dict[str, Any]] = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "second", "tool_call_id": "a"},
        {"role": "tool", "content": "first", "tool_call_id": "b"},
    ]
    results = "<|tool_response|>first<|end|><|tool_response|>second<|end|>"
    before = f"<|user|>Q<|end|><|assistant|>{calls}<|end|>{results}"
    assert readable(tokenizer, Request(history=history)) == f"{before}<|assistant|>"
    assert readable(tokenizer, Request("And?", history=history)) == f"{before}<|user|>And?<|end|><|assistant|>"
    pieces = render(Request(history=history), tokenizer)
    assert pieces.count(CONTROL_IDS["<|end|>"]) == 4  # that among the arguments is text
    plain = {"role": "assistant", "content": "Hm. ", "tool_calls": ({"name": "g", "arguments": {}},)}
    assert "<|assistant|>Hm. <|tool_call|>[{" in readable(tokenizer, Request("x", history=[plain]))


def test_without_a_call_the_tools_are_not_shown(tokenizer: Tokenizer) -> None:
    assert readable(tokenizer, Request("x", tools=[FLAT], tool_choice="none")) == readable(tokenizer, Request("x"))


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"role": "assistant", "content": None}], ("turn 1", "content")),
        ([{"role": "user", "content": "x", "tool_calls": CALLS}], ("turn 1", "only those of the assistant")),
        ([{"role": "assistant", "content": "", "tool_calls": "f"}], ("turn 1", "list of calls")),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": 5}]}], ("turn 1", "a name and arguments")),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}],
            ("turn 1", "'f'", "not JSON"),
        ),
        (
            [
                {"role": "assistant", "content": "", "tool_calls": CALLS},
                {"role": "tool", "content": "x", "tool_call_id": "c"},
            ],
            ("turn 2", "'c'", "one of b, a"),
        ),
    ],
)
def test_bad_turns(tokenizer: Tokenizer, turns: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(PromptError) as caught:
        render(Request("x", history=turns), tokenizer)
    assert all(word in str(caught.value) for word in words)

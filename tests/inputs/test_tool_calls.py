"""Tool calls in a reply's text: the forms that the family writes, and what is no call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.inputs.tool_calls import parse_tool_calls

A: dict[str, Any] = {"name": "weather", "arguments": {"city": "Köln"}}
B: dict[str, Any] = {"name": "time", "arguments": {"zone": 1}}
A_TEXT, B_TEXT = json.dumps(A, ensure_ascii=False), json.dumps(B)
TOOLS = ({"name": "weather"}, {"type": "function", "function": {"name": "time", "parameters": {}}})


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"ok <|tool_call|>[{A_TEXT}]<|/tool_call|> done", "ok  done", (A,)),
        (f"<|tool_call|>[{A_TEXT}, {B_TEXT}]", "", (A, B)),
        (f"<|tool_call|>[{A_TEXT}]<|tool_call|>[{B_TEXT}]<|/tool_call|>", "", (A, B)),
        (f"<|tool_call|>{A_TEXT}<|/tool_call|><|tool_call|>{B_TEXT}<|/tool_call|>", "", (A, B)),
        (f"<|tool_call|>{A_TEXT}\n{B_TEXT}", "", (A, B)),
        (f"<|tool_call|>[{A_TEXT}] I will look it up.", "I will look it up.", (A,)),
        (f"<|tool_call|>```json\n[{A_TEXT}]\n```<|/tool_call|>", "", (A,)),
        (f"<|tool_call|>functools[{A_TEXT}]<|/tool_call|>", "", (A,)),
        (f"functools[{A_TEXT}, {B_TEXT}]", "", (A, B)),
        (f"Let me see. functools[{A_TEXT}]", "Let me see.", (A,)),
        (A_TEXT, "", (A,)),
        (f"[{A_TEXT}]\n", "", (A,)),
        (f"I look it up:\n[{A_TEXT}]", "I look it up:", (A,)),
        (f"Calling:\n```json\n{json.dumps([A, B], indent=2)}\n```\nDone.", "Calling:\n\nDone.", (A, B)),
        (f"```\n{A_TEXT}\n```", "", (A,)),
        (f"```json\n{A_TEXT}", "", (A,)),  # cut off
        ('<|tool_call|>[{"name": "time", "parameters": {"zone": 1}}]', "", (B,)),
        ('<|tool_call|>[{"name": "time", "arguments": "{\\"zone\\": 1}"}]', "", (B,)),
        (f'<|tool_call|>[{{"type": "function", "function": {B_TEXT}}}]', "", (B,)),
        ('<|tool_call|>[{"name": "time"}]', "", ({"name": "time", "arguments": {}},)),
        ('<|tool_call|>[{"name": "other"}]', "", ({"name": "other", "arguments": {}},)),
        ('<|tool_call|>{"name": "a", "arguments": {"b": "<|/tool_call|>"}}', "",
         ({"name": "a", "arguments": {"b": "<|/tool_call|>"}},)),
    ],
)  # fmt: skip
def test_calls(text: str, rest: str, calls: tuple[dict[str, Any], ...]) -> None:
    assert parse_tool_calls(text, TOOLS) == (rest, calls)


@pytest.mark.parametrize(
    "text",
    [
        " plain text ",
        "<|tool_call|>[{",
        "<|tool_call|>[]",
        '<|tool_call|>[{"name": 5}]',
        '<|tool_call|>[{"name": "time", "arguments": 5}]',
        '{"name": "Ann", "age": 5}',  # no tool of that name
        f'[{A_TEXT}, {{"name": "Ann"}}]',
        f"For example {A_TEXT}",
        f'```json\n{{"calls": [{A_TEXT}]}}\n```',
        "<|tool_call|>" + "[" * 100_000,
        "functools.partial([1])",
    ],
)
def test_what_is_no_call_stays_in_the_text(text: str) -> None:
    assert parse_tool_calls(text, TOOLS) == (text, ())


@pytest.mark.parametrize("text", [A_TEXT, f"functools[{A_TEXT}]", f"```json\n{A_TEXT}\n```"])
def test_without_tools_only_marked_calls_are_read(text: str) -> None:
    assert parse_tool_calls(text) == (text, ())
    assert parse_tool_calls(f"<|tool_call|>{A_TEXT}") == ("", (A,))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_CALLS = st.lists(
    st.fixed_dictionaries({"name": st.just("time"), "arguments": st.dictionaries(st.text(), _VALUES)}),
    min_size=1,
    max_size=3,
)


@given(
    _CALLS,
    st.sampled_from(["<|tool_call|>{}", "functools{}", "{}", "```json\n{}\n```", "<|tool_call|>{}<|/tool_call|>"]),
)
def test_what_is_written_is_read(calls: list[dict[str, Any]], form: str) -> None:
    text = form.replace("{}", json.dumps(calls, ensure_ascii=False))
    assert parse_tool_calls(text, TOOLS) == ("", tuple(calls))


@given(
    st.lists(
        st.sampled_from(
            ["<|tool_call|>", "<|/tool_call|>", "functools", "```json", "[", "{", "}", "]", A_TEXT, "\n", " x "]
        )
    )
)
def test_any_text_is_read(parts: list[str]) -> None:
    text = "".join(parts)
    rest, calls = parse_tool_calls(text, TOOLS)
    assert len(rest) <= len(text)
    assert all(call == A for call in calls)

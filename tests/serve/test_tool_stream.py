"""Tool calls out of text that comes in pieces of any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.serve.openai.tool_stream import CallDelta, Content, ToolStream

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": st.text(min_size=1), "arguments": st.dictionaries(st.text(), JSON, max_size=3)}),
    min_size=1,
    max_size=3,
)


def read(text: str, size: int, calls: Sequence[dict[str, Any]] = ()) -> tuple[str, list[tuple[str, str]]]:
    """The content and the calls that a stream of pieces of a size gives."""
    stream = ToolStream()
    content, found = "", []
    deltas = [delta for at in range(0, len(text), size) for delta in stream.push(text[at : at + size])]
    for delta in [*deltas, *stream.finish(calls)]:
        if isinstance(delta, Content):
            content += delta.text
            continue
        assert isinstance(delta, CallDelta)
        if delta.name is not None:
            assert delta.index == len(found)
            found.append((delta.name, ""))
        name, arguments = found[delta.index]
        found[delta.index] = (name, arguments + delta.arguments)
    return content, found


@given(calls=CALLS, size=st.integers(1, 40), indent=st.none() | st.just(2), swapped=st.booleans(), mark=st.booleans())
def test_calls_come_as_they_are_written(
    calls: list[dict[str, Any]], size: int, indent: int | None, swapped: bool, mark: bool
) -> None:
    written = [dict(reversed(call.items())) if swapped else call for call in calls]
    text = json.dumps(written, indent=indent, ensure_ascii=False)
    text = f"<|tool_call|>{text}<|/tool_call|>" if mark else f"functools{text}"
    content, found = read(f"Well. {text}", size, calls)
    assert content == "Well. "
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        (call["name"], call["arguments"]) for call in calls
    ]


@given(st.text(), st.integers(1, 10))
def test_text_without_calls_stays_as_it_is(text: str, size: int) -> None:
    assert read(text, size) == (text, [])


def test_arguments_come_before_they_are_complete() -> None:
    stream = ToolStream()
    begun = list(stream.push('<|tool_call|>[{"name": "f", "arguments": {"a": [1, '))
    assert begun == [CallDelta(0, "", "f"), CallDelta(0, '{"a": [1, ')]
    assert list(stream.push('{"b": "}]"}]}}]<|/tool_call|>')) == [CallDelta(0, '{"b": "}]"}]}')]


@pytest.mark.parametrize(
    "text", ['{"name": "f", "arguments": {}}', '```json\n{"name": "f", "arguments": {}}\n```', '[{"name": "f"}]']
)
def test_bare_json_is_held_back_until_it_is_known(text: str) -> None:
    assert read(text, 3) == (text, [])
    assert read(text, 3, [{"name": "f", "arguments": {}}]) == ("", [("f", "{}")])


@pytest.mark.parametrize("text", ["<|tool_call|>", "<|tool_call|>nothing", "a <|tool_cal", "functools[1, 2]"])
def test_marks_without_a_call_stay_text(text: str) -> None:
    for size in (1, 5, 100):
        assert read(text, size) == (text, [])

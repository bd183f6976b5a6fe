"""Output formats: what asks for one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from phi4mm import OutputFormat, PromptError, Request


class Inner(BaseModel):
    model_config = ConfigDict(extra="allow")
    size: Literal[1, 2]


class Outer(BaseModel):
    inner: Inner
    properties: list[str] = []


class Task(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    run: Callable[[], None]


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, None),
        ({"response_format": None, "regex": None, "grammar": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, OutputFormat(json_object=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}},
            OutputFormat(json_schema={"type": "null"}),
        ),
        ({"response_format": {"type": "object"}}, OutputFormat(json_schema={"type": "object"})),
        ({"response_format": {}}, OutputFormat(json_schema={})),
        ({"regex": "a"}, OutputFormat(regex="a")),
        ({"grammar": "start: x"}, OutputFormat(lark="start: x")),
        ({"output": OutputFormat(regex="a"), "regex": None}, OutputFormat(regex="a")),
    ],
)
def test_ways_to_ask(options: dict[str, Any], output: OutputFormat | None) -> None:
    assert Request.make("x", **options).sampling.output == output


def test_a_pydantic_model_is_closed_unless_it_says_otherwise() -> None:
    output = OutputFormat.of(Outer)
    assert output is not None
    assert isinstance(output.json_schema, dict)
    assert output.json_schema["additionalProperties"] is False
    assert output.json_schema["$defs"]["Inner"]["additionalProperties"] is True
    assert "additionalProperties" not in output.json_schema["properties"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format is .*; expected json_schema: {"),
        ({"response_format": 5}, "response_format is 5; expected a JSON schema or a Pydantic"),
        ({"response_format": Outer(inner=Inner(size=1))}, "response_format is Outer.*; expected a JSON schema"),
        ({"response_format": Task}, "response_format Task has no JSON schema: "),
        ({"response_format": {}, "regex": "a"}, "json_schema and regex; expected one of"),
        ({"regex": 5}, "regex is 5; expected a string"),
        ({"grammar": " "}, "lark is ' '; expected a string"),
        ({"regex": "a", "output": OutputFormat(regex="a")}, "both given"),
    ],
)
def test_bad_formats(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Request.make("x", **options)
    with pytest.raises(PromptError, match="nothing; expected one of"):
        OutputFormat()

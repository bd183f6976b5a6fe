"""The tool calls in a reply's text, in the forms in which the Phi-4 family writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

_OPENING = re.compile(
    r"""(?P<mark><\|tool_call\|>\s*(?:functools|```(?:json)?)?)
    | (?P<functools>\bfunctools)(?=\s*\[)
    | (?P<fence>```[ ]*(?:json|tool_call|tool_code)?[ ]*\n?)(?=\s*[\[{])
    | (?P<bare>^[ ]*)(?=\{\s*"|\[\s*\{)""",
    re.VERBOSE | re.MULTILINE,
)
_CLOSING = {"mark": re.compile(r"\s*(?:```)?\s*<\|/tool_call\|>"), "fence": re.compile(r"\s*(?:```|\Z)")}
_FILLER = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder()

Calls = tuple[dict[str, Any], ...]


def parse_tool_calls(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, Calls]:
    """Take the tool calls out of a reply.

    A call is a JSON object with a "name", or a list of such objects, in one of these forms:

    - after ``<|tool_call|>``, with or without ``<|/tool_call|>`` at its end, once or several times;
    - ``functools[...]``, where there are tools;
    - in a fence (three backquotes, ``json``) or from the beginning of a line, where each name is that of a tool.

    "parameters" counts as "arguments", arguments that are a string of JSON are decoded, and an object under "function"
    (OpenAI's form) counts as the call itself.

    Args:
        text: the whole reply.
        tools: those of the request, as ``{"name": ...}`` or ``{"type": "function", "function": {"name": ...}}``.

    Returns:
        The text without its calls, and the calls in order: mappings with "name" and "arguments". What is not valid
        JSON, or not a call, stays in the text.
    """
    known = frozenset(_tool_names(tools))
    kept: list[str] = []
    calls: list[dict[str, Any]] = []
    start = searched = 0
    while (opening := _OPENING.search(text, searched)) is not None:
        form = opening.lastgroup or ""
        searched = max(opening.end(), opening.start() + 1)
        if form != "mark" and not known:
            continue
        found, end = _calls_at(text, opening.end(), None if form in ("mark", "functools") else known)
        closing = _CLOSING[form].match(text, end) if form in _CLOSING else None
        if not found or (form == "fence" and closing is None):
            continue
        kept.append(text[start : opening.start()])
        calls += found
        start = searched = closing.end() if closing else end
    rest = "".join((*kept, text[start:]))
    return (rest.strip() if calls else rest), tuple(calls)


def _calls_at(text: str, start: int, names: Collection[str] | None) -> tuple[list[dict[str, Any]], int]:
    """The calls that stand in a row from ``start`` on, and the place after the last; none unless all are calls.

    Args:
        names: the only ones that a call may have; ``None`` for any.
    """
    calls: list[dict[str, Any]] = []
    end = start
    while True:
        if filler := _FILLER.match(text, start):
            start = filler.end()
        if text[start : start + 1] not in ("[", "{"):
            return calls, end
        try:
            value, start = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return calls, end
        found = [_call(item) for item in (value if isinstance(value, list) else [value])]
        good = [call for call in found if call is not None and (names is None or call["name"] in names)]
        if not found or len(good) < len(found):
            return calls, end
        calls += good
        end = start


def _call(value: object) -> dict[str, Any] | None:
    """A call with "name" and "arguments"; ``None`` where the value is no call."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _tool_names(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            yield name

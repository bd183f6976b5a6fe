"""Tools of a request: as the prompt shows them, as a grammar needs them, and their calls in earlier turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from phi4mm.errors import PromptError
from phi4mm.types import Request
from phi4mm.validate import shown, wrong

# Types of the model card's parameters, which are Python's, in JSON schema's words.
_TYPES = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer", "float": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "list": "array", "array": "array", "dict": "object", "object": "object",
}  # fmt: skip
_SCHEMA_KEYS = {"properties", "required", "$ref", "anyOf", "oneOf", "allOf", "$defs", "additionalProperties"}


def flatten_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tool definitions as the prompt has them: ``{"name", "description", "parameters"}``, where OpenAI has another
    mapping around. Its ``strict`` is left out.

    Raises:
        PromptError: a definition is no mapping, has no name or that of another, or cannot be written as JSON.
    """
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise wrong("tools", tools, "a list of mappings (name, description, parameters)")
    flat: list[dict[str, Any]] = []
    for number, tool in enumerate(tools, 1):
        inner = tool.get("function") if tool.get("type") == "function" else None
        taken = inner if isinstance(inner, Mapping) else tool
        dropped = {"strict", "type"} if tool.get("type") == "function" else {"strict"}
        made = {key: value for key, value in taken.items() if key not in dropped}
        try:
            json.dumps(made, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"tools: tool {number} cannot be written as JSON ({error}); use plain values, lists, dicts"
            raise PromptError(message) from error
        name = made.get("name")
        if not isinstance(name, str) or not name:
            raise PromptError(f"tools: tool {number} has no name; expected a mapping with name and parameters")
        if any(name == other["name"] for other in flat):
            raise PromptError(f"tools: two are named {name!r}; name each differently")
        flat.append(made)
    return flat


def strict_names(tools: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of the tools that ask for it by OpenAI's ``strict``: each keyword of their schemas holds, or is an
    error."""
    inner = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    return {tool["name"] for tool in inner if tool.get("strict") is True}


def shown_tools(request: Request) -> list[dict[str, Any]]:
    """The tools that the prompt shows: none where the reply may call none.

    Raises:
        PromptError: as ``flatten_tools``.
    """
    return [] if request.tool_choice == "none" else flatten_tools(request.tools)


def callable_tools(request: Request) -> dict[str, dict[str, Any]]:
    """The tools that the reply may call: their names, each with the JSON schema of its arguments.

    Raises:
        PromptError: a tool is wrong, or ``tool_choice`` names one that is not there.
    """
    schemas = {tool["name"]: arguments_schema(tool) for tool in shown_tools(request)}
    if isinstance(request.tool_choice, str):
        return schemas
    names = [request.tool_choice["name"]] if "name" in request.tool_choice else request.tool_choice["allowed"]
    missing = [name for name in names if name not in schemas]
    if missing:
        raise PromptError(f"tool_choice names {missing[0]!r}; expected one of the tools: {', '.join(schemas)}")
    return {name: schema for name, schema in schemas.items() if name in names}


def must_call(request: Request) -> bool:
    """Whether the reply is to be a tool call."""
    choice = request.tool_choice
    return choice == "required" if isinstance(choice, str) else "name" in choice or choice["mode"] == "required"


def arguments_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, an object. Those that it does not name are not allowed, unless its schema
    says so or is a combination of others; of a tool without parameters any are.

    Raises:
        PromptError: the parameters are not a mapping.
    """
    parameters = tool.get("parameters")
    if parameters is None:
        return {"type": "object"}
    if not isinstance(parameters, Mapping):
        raise PromptError(
            f"tools: the parameters of {tool['name']!r} are {shown(parameters)}; expected a JSON schema of an object"
        )
    if not _is_schema(parameters):
        return {
            "type": "object",
            "properties": {name: _parameter(value) for name, value in parameters.items()},
            "required": [name for name, value in parameters.items() if "default" not in value],
            "additionalProperties": False,
        }
    schema = dict(parameters)
    if not schema.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        schema.setdefault("type", "object")
        if "properties" in schema and "patternProperties" not in schema:
            schema.setdefault("additionalProperties", False)
    return schema


def _is_schema(parameters: Mapping[str, Any]) -> bool:
    """Whether it is a JSON schema, not the model card's mapping of names to their descriptions."""
    described = all(isinstance(value, Mapping) for value in parameters.values())
    return not parameters or not described or bool(parameters.keys() & _SCHEMA_KEYS)


def _parameter(described: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of one of the model card's parameters; any value where its type is not known."""
    if set(described) <= {"description", "type", "default"}:
        kind = str(described.get("type", "")).split(",")[0].strip()  # "str, optional"
        return {"type": _TYPES[kind]} if kind in _TYPES else {}
    return dict(described)


def calls_json(calls: Any, where: str) -> str:
    """An assistant turn's ``tool_calls`` as the model writes them: ``[{"name": ..., "arguments": {...}}]``.

    Args:
        calls: each ``{"name", "arguments"}``, or OpenAI's ``{"id", "type", "function": {"name", "arguments": text}}``.
        where: the turn, for errors.

    Raises:
        PromptError: they are something else.
    """
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise PromptError(f"{where}: tool_calls is {shown(calls)}; expected a list of calls")
    written = []
    for call in calls:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise PromptError(f"{where}: a tool call is {shown(call)}; expected a name and arguments")
        arguments = inner.get("arguments", {})
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments) if arguments.strip() else {}
            written.append(json.dumps({"name": inner["name"], "arguments": arguments}, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise PromptError(
                f"{where}: the arguments of the call of {inner['name']!r} are not JSON ({error}); correct them"
            ) from error
    return f"[{', '.join(written)}]"


def ordered_results(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The turns, where results that name their calls stand in the order of the calls: the prompt has no ids.

    Raises:
        PromptError: a result names a call that the turn before it does not have.
    """
    ordered: list[Mapping[str, Any]] = []
    places: dict[Any, int] = {}
    first, named = 0, False  # of the results since the last calls; whether one names its call

    def settle() -> None:
        if named:
            ordered[first:] = sorted(ordered[first:], key=lambda one: places.get(one.get("tool_call_id"), len(places)))

    for number, turn in enumerate(history, 1):
        if not isinstance(turn, Mapping) or turn.get("role") != "tool":
            settle()
            places, first, named = _places(turn), number, False
            ordered.append(turn)
            continue
        ordered.append(turn)
        name = turn.get("tool_call_id")
        if name is not None and places:
            if not isinstance(name, str) or name not in places:
                raise PromptError(
                    f"history turn {number}: tool_call_id {shown(name)} is not among the calls of the turn before; "
                    f"expected one of {', '.join(list(places)[:20])}"
                )
            named = True
    settle()
    return ordered


def _places(turn: Any) -> dict[Any, int]:
    calls = turn.get("tool_calls") if isinstance(turn, Mapping) else None
    if not isinstance(calls, Sequence):
        return {}
    ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
    return {name: place for place, name in enumerate(ids) if isinstance(name, str)}

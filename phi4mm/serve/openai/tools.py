"""OpenAI's ``tools`` and ``tool_choice`` to a request's, and tool calls on the wire."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from phi4mm.inputs.tool_calls import parse_tool_calls
from phi4mm.serve.errors import bad_request
from phi4mm.serve.limits import Limits
from phi4mm.serve.openai.sampling import check_bytes

MARKS = ("<|tool_call|>", "functools[")


def tool_options(
    tools: Sequence[Mapping[str, Any]] | None, choice: Any, parallel: bool | None, limits: Limits
) -> dict[str, Any]:
    """The fields of ``phi4mm.Request`` that these come to; only those that differ from its own defaults.

    Raises:
        ApiError: there are too many, they are too large, or of a kind that is not taken.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice: there are no tools to choose from", "tool_choice")
        return {}
    if len(tools) > limits.max_tools:
        raise bad_request(f"tools: {len(tools)}; this server takes at most {limits.max_tools}", "tools", "over_limit")
    check_bytes("tools", tools, limits)
    for index, tool in enumerate(tools):
        if tool.get("type", "function") != "function":
            raise bad_request(f"tools[{index}]: the type is not function", f"tools[{index}].type")
        inner = tool.get("function", tool)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise bad_request(
                f'tools[{index}]: expected "function": {{"name", "parameters"}}', f"tools[{index}].function"
            )
        if not isinstance(inner.get("parameters"), Mapping | None):
            raise bad_request(f"tools[{index}]: parameters is not a JSON schema", f"tools[{index}].function.parameters")
    options: dict[str, Any] = {"tools": list(tools)}
    if (chosen := _choice(choice)) != "auto":
        options["tool_choice"] = chosen
    if parallel is False:
        options["parallel_tool_calls"] = False
    return options


def _choice(choice: Any) -> Any:
    if choice is None or choice in ("none", "auto", "required"):
        return choice or "auto"
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if kind == "function" and (name := _name(choice)):
            return {"name": name}
        if kind == "allowed_tools":
            inner = choice.get("allowed_tools", choice)
            listed = inner.get("tools") if isinstance(inner, Mapping) else None
            names = [_name(tool) for tool in listed] if isinstance(listed, list) else []
            mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
            if names and all(names) and mode in ("auto", "required"):
                return {"allowed": names, "mode": mode}
    raise bad_request(
        "tool_choice: expected none, auto, required, a function, or allowed_tools with its mode and tools",
        "tool_choice",
    )


def _name(tool: Any) -> str | None:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) and name else None


def call_id() -> str:
    """A new id of a tool call."""
    return f"call_{secrets.token_hex(12)}"


def wire_calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A reply's tool calls as messages have them."""
    return [
        {
            "id": call_id(),
            "type": "function",
            "function": {
                "name": str(call.get("name", "")),
                "arguments": json.dumps(call.get("arguments", call.get("parameters", {})), ensure_ascii=False),
            },
        }
        for call in calls
    ]


def text_beside_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """What a reply with tool calls has beside them."""
    rest, _ = parse_tool_calls(text, tools)
    return rest.strip() or None

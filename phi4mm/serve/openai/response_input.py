"""What clients send to ``/v1/responses``, to messages and options as chat has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from phi4mm.serve.errors import bad_request
from phi4mm.serve.openai.messages import Message
from phi4mm.serve.openai.sampling import SamplingBody

LOGPROBS = "message.output_text.logprobs"
_STATEFUL = ("previous_response_id", "conversation", "prompt", "context_management")
_ROLES = ("system", "developer", "user", "assistant")


class ResponsesBody(SamplingBody):
    """The body of a request; fields that OpenAI has and that are not listed are passed over."""

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=2**31 - 1)
    include: list[str] | None = None
    background: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    metadata: dict[str, Any] | None = None
    truncation: str | None = None
    user: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def chat_tools(self) -> list[dict[str, Any]]:
        """The tools as chat has them."""
        return [
            tool
            if "function" in tool or tool.get("type", "function") != "function"
            else {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
            for tool in self.tools or ()
        ]

    def as_chat(self) -> ResponsesBody:
        """With the fields that chat calls otherwise.

        Raises:
            ApiError: a field asks for what a server without memory cannot do, or the output's format is wrong.
        """
        for name in _STATEFUL:
            if getattr(self, name) is not None:
                raise bad_request(f"{name}: this server keeps nothing; send the whole conversation as input", name)
        if self.background:
            raise bad_request("background: this server keeps nothing; leave it out, or stream", "background")
        return self.model_copy(update={"n": 1, "response_format": self._response_format()})

    def _response_format(self) -> dict[str, Any] | None:
        format = (self.text or {}).get("format")
        if format is None:
            return self.response_format
        if not isinstance(format, dict):
            raise bad_request('text.format: expected {"type": "text", "json_object" or "json_schema"}', "text.format")
        if format.get("type") != "json_schema" or "json_schema" in format:
            return format
        return {
            "type": "json_schema",
            "json_schema": {name: value for name, value in format.items() if name != "type"},
        }


def read_input(body: ResponsesBody) -> list[Message]:
    """The messages of a request's input.

    Raises:
        ApiError: an item is of a kind that is not taken.
    """
    if isinstance(body.input, str):
        return [Message(role="user", content=body.input)]
    messages: list[Message] = []
    for index, item in enumerate(body.input):
        _add(messages, item, f"input[{index}]")
    return messages


def _add(messages: list[Message], item: Any, where: str) -> None:
    if not isinstance(item, Mapping):
        raise bad_request(f"{where}: expected an object", where)
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise bad_request(f"{where}.role: is none of {', '.join(_ROLES)}", f"{where}.role")
        messages.append(Message(role=role, content=item.get("content")))
    elif kind == "function_call":
        call = _call(item, where)
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant":  # text and calls of one turn are items of their own
            messages[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or ()), call]})
        else:
            messages.append(Message(role="assistant", tool_calls=[call]))
    elif kind == "function_call_output":
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise bad_request(f"{where}.call_id: expected a string", f"{where}.call_id")
        messages.append(Message(role="tool", tool_call_id=call_id, content=item.get("output")))
    elif kind != "reasoning":  # there is none to be taken up
        raise bad_request(
            f"{where}: the type is none of message, function_call, function_call_output and reasoning", f"{where}.type"
        )


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {name: item.get(name) for name in ("call_id", "name", "arguments")}
    for name, value in values.items():
        if not isinstance(value, str):
            raise bad_request(f"{where}.{name}: expected a string", f"{where}.{name}")
    function = {"name": values["name"], "arguments": values["arguments"]}
    return {"id": values["call_id"], "type": "function", "function": function}


def echoed_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as responses have them: flat."""
    return [
        {"type": "function", **inner} if isinstance(inner := tool.get("function"), Mapping) else dict(tool)
        for tool in tools
    ]

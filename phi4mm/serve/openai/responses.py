"""``/v1/responses``, without memory: each request carries its whole conversation."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from phi4mm.serve.errors import as_api_error
from phi4mm.serve.generation import Generation, Prepared, ended, start
from phi4mm.serve.openai.chat import answered, planned
from phi4mm.serve.openai.messages import check_text, read_messages
from phi4mm.serve.openai.response_input import ResponsesBody, echoed_tools, read_input
from phi4mm.serve.openai.sampling import adapter_of, logprobs_of, sampling_options
from phi4mm.serve.openai.tool_stream import CallDelta, Content, Delta, ToolStream
from phi4mm.serve.openai.tools import call_id, text_beside_calls, tool_options
from phi4mm.serve.openai.wire import logprob_list, new_id, route_object, usage_object
from phi4mm.serve.service import Service, service_of
from phi4mm.serve.sse import event, until_disconnect
from phi4mm.types import Reply, TokenLogprob

router = APIRouter(tags=["responses"])
Event = dict[str, Any]


@router.post(
    "/v1/responses",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": ResponsesBody.model_json_schema()}}}},
)
async def responses(request: HttpRequest) -> Response:
    """Answer a conversation of texts, images, audio and tool results."""
    service = service_of(request)
    with ExitStack() as stack:
        ticket = stack.enter_context(service.admission.enter())
        body = (await service.read_json(request, ResponsesBody, ticket)).as_chat()
        prepare = await _plan(service, body)
        ticket.take(rows=1)
        generation = stack.enter_context(ended(await until_disconnect(request, start(service, ticket, prepare))))
        return await answered(request, stack, _Answer(service, body, generation), stream=bool(body.stream))


async def _plan(service: Service, body: ResponsesBody) -> Callable[[], Prepared]:
    """Check a body and fetch what it refers to; what is left to do is long and for a thread."""
    conversation = read_messages(read_input(body), service.limits, "input")
    if body.instructions is not None:
        check_text([body.instructions], service.limits, "instructions")
        system = body.instructions if conversation.system is None else f"{body.instructions}\n\n{conversation.system}"
        conversation = replace(conversation, system=system)
    logprobs = logprobs_of(body.wants_logprobs, body.top_logprobs, service.limits)
    options = sampling_options(
        body, service.limits, max_tokens=body.max_output_tokens or body.max_tokens, logprobs=logprobs
    )
    options |= tool_options(body.chat_tools, body.tool_choice, body.parallel_tool_calls, service.limits)
    options["adapter"] = adapter_of(body, service)
    return await planned(service, conversation, options)


@dataclass
class _Answer:
    """A running request's answer on the wire."""

    service: Service
    body: ResponsesBody
    generation: Generation

    def __post_init__(self) -> None:
        body = self.body
        self._tokenizer = self.service.model.processor.tokenizer
        self._own: Event = {
            "id": new_id("resp").replace("-", "_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model or self.service.options.names[0],
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature if body.temperature is not None else 0.0,
            "text": {"format": {"type": "text"}, **(body.text or {})},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": echoed_tools(body.tools or ()),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p if body.top_p is not None else 1.0,
            "truncation": body.truncation or "disabled",
            "user": body.user,
            "route": route_object(self.generation.row.route),
        }

    def whole(self, replies: Sequence[Reply]) -> Event:
        """The object of a request that does not stream."""
        [reply] = replies
        items = _Items(self._logprobs)
        for delta in _deltas(reply, self.body.chat_tools):
            for _ in items.push(delta, reply.logprobs or () if isinstance(delta, Content) else ()):
                pass
        for _ in items.finish(_status(reply)):
            pass
        return self._response(reply, items)

    async def events(self) -> AsyncGenerator[bytes]:
        """The events of a request that streams."""
        number = 0

        def numbered(one: Event) -> bytes:
            nonlocal number
            number += 1
            return event({**one, "sequence_number": number - 1}, one["type"])

        started = {**self._own, "status": "in_progress", "output": [], "usage": None}
        yield numbered({"type": "response.created", "response": started})
        yield numbered({"type": "response.in_progress", "response": started})
        handle = self.generation.handles[0]
        items = _Items(self._logprobs)
        tools = ToolStream() if self.body.tools and self.body.tool_choice != "none" else None
        num_sent = 0
        try:
            async for piece in self.generation.pieces():
                for delta in tools.push(piece) if tools else (Content(piece),):
                    logprobs = handle.logprobs(num_sent)
                    num_sent += len(logprobs)
                    for one in items.push(delta, logprobs):
                        yield numbered(one)
            reply = await handle
            for delta in tools.finish(reply.tool_calls) if tools else ():
                for one in items.push(delta, ()):
                    yield numbered(one)
        except Exception as error:
            shown = as_api_error(error)
            failed = {"code": "server_error", "message": shown.message}
            yield numbered({"type": "response.failed", "response": {**started, "status": "failed", "error": failed}})
            return
        items.logprobs += (reply.logprobs or ())[num_sent:]
        for one in items.finish(_status(reply)):
            yield numbered(one)
        self.generation.finished([reply])
        response = self._response(reply, items)
        yield numbered({"type": f"response.{response['status']}", "response": response})

    def _response(self, reply: Reply, items: _Items) -> Event:
        status = _status(reply)
        usage = usage_object(self.generation.row, [reply])
        details = usage["prompt_tokens_details"]
        return {
            **self._own,
            "status": status,
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items.output,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {**details, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[Event]:
        return logprob_list(tokens, self._tokenizer) if self.body.wants_logprobs else []


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason == "length" else "completed"


def _deltas(reply: Reply, tools: Sequence[Mapping[str, Any]]) -> Iterator[Delta]:
    """A whole reply as the parts that a stream of it has."""
    calls = reply.tool_calls if tools else ()
    text = text_beside_calls(reply.text, tools) if calls else reply.text
    if text:
        yield Content(text)
    for index, call in enumerate(calls):
        arguments = call.get("arguments", call.get("parameters", {}))
        yield CallDelta(index, json.dumps(arguments, ensure_ascii=False), str(call.get("name", "")))


@dataclass
class _Items:
    """The items of an output as they grow: a message, then tool calls, one after another.

    Args:
        shown: log-probabilities as they are on the wire.

    Attributes:
        output: the items that are complete.
        logprobs: of the message's tokens.
    """

    shown: Callable[[Sequence[TokenLogprob]], list[Event]]
    output: list[Event] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    _open: Event | None = None
    _text: str = ""

    def push(self, delta: Delta, logprobs: Sequence[TokenLogprob]) -> Iterator[Event]:
        """The events of some more text or arguments."""
        if isinstance(delta, Content):
            if self._open is None or self._open["type"] != "message":
                yield from self._close("completed")
                yield from self._begin_message()
            self._text += delta.text
            self.logprobs += logprobs
            yield self._event("output_text.delta", content_index=0, delta=delta.text, logprobs=self.shown(logprobs))
            return
        if delta.name is not None:
            yield from self._close("completed")
            yield from self._begin(
                {
                    "type": "function_call",
                    "id": new_id("fc").replace("-", "_"),
                    "call_id": call_id(),
                    "name": delta.name,
                    "arguments": "",
                    "status": "in_progress",
                }
            )
        if delta.arguments:
            self._text += delta.arguments
            yield self._event("function_call_arguments.delta", delta=delta.arguments)

    def finish(self, status: str) -> Iterator[Event]:
        """The events of the end; an output has one item at least."""
        if self._open is None and not self.output:
            yield from self._begin_message()
        yield from self._close(status)

    def _begin_message(self) -> Iterator[Event]:
        yield from self._begin(
            {
                "type": "message",
                "id": new_id("msg").replace("-", "_"),
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
        )
        yield self._event("content_part.added", content_index=0, part=self._part())

    def _begin(self, item: Event) -> Iterator[Event]:
        self._open, self._text = item, ""
        yield self._event("output_item.added", item=item)

    def _close(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        if item["type"] == "message":
            part = self._part()
            yield self._event("output_text.done", content_index=0, text=self._text, logprobs=part["logprobs"])
            yield self._event("content_part.done", content_index=0, part=part)
            item = {**item, "status": status, "content": [part]}
        else:
            yield self._event("function_call_arguments.done", name=item["name"], arguments=self._text)
            item = {**item, "status": status, "arguments": self._text}
        done = self._event("output_item.done", item=item)
        self.output.append(item)
        self._open = None
        yield done

    def _part(self) -> Event:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self.shown(self.logprobs)}

    def _event(self, kind: str, **values: Any) -> Event:
        assert self._open is not None
        place: Event = {"output_index": len(self.output)}
        if "item" not in values:
            place["item_id"] = self._open["id"]
        return {"type": f"response.{kind}", **place, **values}

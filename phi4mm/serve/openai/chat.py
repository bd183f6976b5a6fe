"""``/v1/chat/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import JSONResponse, Response

from phi4mm.serve.errors import bad_request
from phi4mm.serve.generation import Generation, Prepared, ended, start
from phi4mm.serve.media import MediaReader, Medium
from phi4mm.serve.openai.messages import Conversation, Message, read_messages
from phi4mm.serve.openai.sampling import SamplingBody, adapter_of, logprobs_of, sampling_options
from phi4mm.serve.openai.tool_stream import CallDelta, Content, Delta, ToolStream
from phi4mm.serve.openai.tools import call_id, text_beside_calls, tool_options, wire_calls
from phi4mm.serve.openai.wire import logprob_list, new_id, route_object, usage_object
from phi4mm.serve.service import Service, service_of
from phi4mm.serve.sse import DONE, EventStream, event, merged, until_disconnect
from phi4mm.types import Reply, Request

router = APIRouter(tags=["chat"])


class ChatBody(SamplingBody):
    """The body of a chat request; fields that OpenAI has and that are not listed are passed over."""

    messages: list[Message]
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=2**31 - 1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    functions: Any = None


@router.post(
    "/v1/chat/completions",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": ChatBody.model_json_schema()}}}},
)
async def chat(request: HttpRequest) -> Response:
    """Answer a conversation of texts, images and audio."""
    service = service_of(request)
    with ExitStack() as stack:
        ticket = stack.enter_context(service.admission.enter())
        body = await service.read_json(request, ChatBody, ticket)
        prepare = await _plan(service, body)
        ticket.take(rows=body.num_replies)
        generation = stack.enter_context(ended(await until_disconnect(request, start(service, ticket, prepare))))
        return await answered(request, stack, _Answer(service, body, generation), stream=bool(body.stream))


class WireAnswer(Protocol):
    """A running request's answer in the form of an endpoint."""

    service: Service
    generation: Generation

    def whole(self, replies: list[Reply]) -> dict[str, Any]:
        """The object of a request that does not stream."""
        ...

    def events(self) -> AsyncGenerator[bytes, None]:
        """Those of one that does."""
        ...


async def answered(request: HttpRequest, stack: ExitStack, answer: WireAnswer, *, stream: bool) -> Response:
    """An answer, whole or as events; ``stack`` stays open until they have ended."""
    if not stream:
        return JSONResponse(answer.whole(await until_disconnect(request, answer.generation.replies())))
    ping_seconds = answer.service.options.ping_seconds
    await until_disconnect(request, answer.generation.begun(ping_seconds))
    return EventStream(answer.events(), stack.pop_all(), ping_seconds=ping_seconds)


async def _plan(service: Service, body: ChatBody) -> Callable[[], Prepared]:
    """Check a body and fetch what it refers to; what is left to do is long and for a thread."""
    if "audio" in (body.modalities or ()):
        raise bad_request("modalities: the model gives no audio; leave it out or ask for text", "modalities")
    if body.functions is not None:
        raise bad_request("functions: is no longer taken; use tools", "functions")
    conversation = read_messages(body.messages, service.limits)
    max_tokens = body.max_completion_tokens or body.max_tokens
    logprobs = logprobs_of(bool(body.logprobs), body.top_logprobs, service.limits)
    options = sampling_options(body, service.limits, max_tokens=max_tokens, logprobs=logprobs)
    options |= tool_options(body.tools, body.tool_choice, body.parallel_tool_calls, service.limits)
    options["adapter"] = adapter_of(body, service)
    return await planned(service, conversation, options)


async def planned(service: Service, conversation: Conversation, options: dict[str, Any]) -> Callable[[], Prepared]:
    """Fetch a conversation's remote media; what is returned decodes them and renders the prompt, in a thread.

    Args:
        options: other fields of ``phi4mm.Request`` and ``SamplingParams``.
    """
    media = await fetched(service, conversation.media)

    def prepare() -> Prepared:
        reader = MediaReader(service.limits, service.model.model.config.vision)
        images = [reader.image(media[index]) for index in conversation.of_kind("image")]
        audios = [reader.audio(media[index]) for index in conversation.of_kind("audio")]
        request = Request.make(
            conversation.text,
            images=images,
            audios=audios,
            system=conversation.system,
            history=conversation.history,
            **options,
        )
        return Prepared(request, service.model.processor.row(request), reader.audio_seconds, len(images))

    return prepare


async def fetched(service: Service, media: tuple[Medium, ...]) -> list[Medium]:
    """Media with the content of those that are remote.

    Raises:
        ApiError: they may not or cannot be fetched.
    """
    remote = [medium for medium in media if medium.is_remote]
    if remote and not service.options.security.allow_urls:
        raise bad_request(
            f"{remote[0].param}: this server fetches no URLs; send the file as data:TYPE;base64,...", remote[0].param
        )
    contents = await asyncio.gather(*(service.fetcher.fetch(medium.text, medium.param) for medium in remote))
    by_place = dict(zip(map(id, remote), contents, strict=True))
    return [replace(medium, content=by_place.get(id(medium))) for medium in media]


@dataclass
class _Answer:
    """A running request's answer on the wire."""

    service: Service
    body: ChatBody
    generation: Generation

    def __post_init__(self) -> None:
        self._own = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": self.body.model or self.service.options.names[0],
            "system_fingerprint": None,
        }
        self._route = route_object(self.generation.row.route)
        self._tokenizer = self.service.model.processor.tokenizer

    def whole(self, replies: list[Reply]) -> dict[str, Any]:
        """The object of a request that does not stream."""
        return {
            **self._own,
            "object": "chat.completion",
            "choices": [self._choice(index, reply) for index, reply in enumerate(replies)],
            "usage": usage_object(self.generation.row, replies),
            "route": self._route,
        }

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if self._calls(reply):
            message |= {
                "content": text_beside_calls(reply.text, self.body.tools or ()),
                "tool_calls": wire_calls(reply.tool_calls),
            }
        return {
            "index": index,
            "message": message,
            "finish_reason": self._reason(reply),
            "logprobs": None
            if reply.logprobs is None
            else {"content": logprob_list(reply.logprobs, self._tokenizer), "refusal": None},
        }

    def _calls(self, reply: Reply) -> bool:
        return bool(reply.tool_calls and self.body.tools)

    def _reason(self, reply: Reply) -> str:
        if reply.finish_reason == "tool_calls" and not self._calls(reply):
            return "stop"
        return reply.finish_reason

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a request that streams.

        Rows of several replies come as they are decoded, each chunk of one of them.
        """
        count = len(self.generation.handles)
        for index in range(count):
            first = self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
            yield event(first | ({"route": self._route} if not index else {}))
        async with aclosing(merged([self._stream(index) for index in range(count)])) as chunks:
            async for chunk in chunks:
                yield event(chunk)
        replies = [await handle for handle in self.generation.handles]
        self.generation.finished(replies)
        if self.body.wants_usage:
            yield event(self._envelope([]) | {"usage": usage_object(self.generation.row, replies)})
        yield DONE

    async def _stream(self, index: int) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of one reply."""
        handle = self.generation.handles[index]
        tools = ToolStream() if self.body.tools and self.body.tool_choice != "none" else None
        num_sent = 0
        async for piece in self.generation.pieces(index):
            for delta in tools.push(piece) if tools else (Content(piece),):
                logprobs = handle.logprobs(num_sent)
                num_sent += len(logprobs)
                yield self._chunk(index, _delta(delta), logprobs=logprobs)
        reply = await handle
        for delta in tools.finish(reply.tool_calls) if tools else ():
            yield self._chunk(index, _delta(delta))
        rest = (reply.logprobs or ())[num_sent:]
        yield self._chunk(index, {}, self._reason(reply), logprobs=rest)

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, *, logprobs: Any = ()
    ) -> dict[str, Any]:
        content = {"content": logprob_list(logprobs, self._tokenizer), "refusal": None} if logprobs else None
        return self._envelope([{"index": index, "delta": delta, "finish_reason": reason, "logprobs": content}])

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage: dict[str, Any] = {"usage": None} if self.body.wants_usage else {}
        return {**self._own, "object": "chat.completion.chunk", "choices": choices, **usage}


def _delta(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, Content):
        return {"content": delta.text}
    assert isinstance(delta, CallDelta)
    call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments}}
    if delta.name is not None:
        call |= {"id": call_id(), "type": "function", "function": {"name": delta.name, "arguments": delta.arguments}}
    return {"tool_calls": [call]}

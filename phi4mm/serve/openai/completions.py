"""``/v1/completions``: prompts without the chat template, as text or token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import JSONResponse, Response

from phi4mm.inputs.processor import Row
from phi4mm.model.router import route
from phi4mm.serve.errors import bad_request
from phi4mm.serve.generation import Generation, Prepared, ended, start
from phi4mm.serve.openai.messages import check_text
from phi4mm.serve.openai.sampling import SamplingBody, adapter_of, logprobs_of, sampling_options
from phi4mm.serve.openai.wire import finite, new_id, route_object, usage_object
from phi4mm.serve.service import Service, service_of
from phi4mm.serve.sse import DONE, EventStream, event, merged, until_disconnect
from phi4mm.types import Modality, Reply, Request, TokenLogprob

router = APIRouter(tags=["completions"])
_MOST_PROMPTS = 64


class CompletionBody(SamplingBody):
    """The body of a completion request."""

    prompt: str | list[Any]
    logprobs: int | None = Field(None, ge=0, le=2**31 - 1)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


@router.post(
    "/v1/completions",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": CompletionBody.model_json_schema()}}}},
)
async def completions(request: HttpRequest) -> Response:
    """Continue one or several prompts."""
    service = service_of(request)
    with ExitStack() as stack:
        ticket = stack.enter_context(service.admission.enter())
        body = await service.read_json(request, CompletionBody, ticket)
        prompts = _prompts(body)
        check_text((one for one in prompts if isinstance(one, str)), service.limits, "prompt")
        ticket.take(rows=len(prompts) * body.num_replies)
        options = _options(service, body)
        generations = []
        for prompt in prompts:
            prepare = partial(_prepare, service, prompt, options)
            generation = await until_disconnect(request, start(service, ticket, prepare))
            generations.append(stack.enter_context(ended(generation)))
        answer = _Answer(service, body, prompts, generations)
        if not body.stream:
            return JSONResponse(await until_disconnect(request, answer.whole()))
        await until_disconnect(request, generations[0].begun(service.options.ping_seconds))
        return EventStream(answer.events(), stack.pop_all(), ping_seconds=service.options.ping_seconds)


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    """The prompts, of which OpenAI has four forms.

    Raises:
        ApiError: it is none of them, or one of the body's fields cannot be carried out.
    """
    given = body.prompt
    if isinstance(given, str):
        prompts: list[Any] = [given]
    elif given and all(type(one) is int for one in given):
        prompts = [given]
    else:
        prompts = given
    is_good = all(
        isinstance(one, str) or (isinstance(one, list) and all(type(i) is int for i in one)) for one in prompts
    )
    if not prompts or not all(prompts) or not is_good:
        raise bad_request("prompt: expected a text, token ids, or a list of either, none of them empty", "prompt")
    if len(prompts) > _MOST_PROMPTS:
        raise bad_request(f"prompt: {len(prompts)} prompts; at most {_MOST_PROMPTS} are taken", "prompt", "over_limit")
    if body.suffix:
        raise bad_request("suffix: the model does not fill in; leave it out", "suffix")
    if body.echo and body.logprobs is not None:
        raise bad_request("echo: log-probabilities of a prompt are not reported; leave out one of them", "echo")
    if body.best_of is not None and body.best_of != body.num_replies:
        raise bad_request("best_of: expected the same as n", "best_of")
    return prompts


def _options(service: Service, body: CompletionBody) -> dict[str, Any]:
    logprobs = logprobs_of(body.logprobs is not None, body.logprobs, service.limits, "logprobs")
    options = sampling_options(body, service.limits, max_tokens=body.max_tokens or 16, logprobs=logprobs)
    return options | {"adapter": adapter_of(body, service)}


def _prepare(service: Service, prompt: str | list[int], options: dict[str, Any]) -> Prepared:
    processor = service.model.processor
    if isinstance(prompt, str):
        token_ids = processor.tokenizer.encode(prompt)
    else:
        token_ids = prompt
        size = processor.config.decoder.vocab_size
        if not all(0 <= token_id < size for token_id in token_ids):
            raise bad_request(f"prompt: a token id is not one of the vocabulary's {size}", "prompt")
    if len(token_ids) >= processor.config.decoder.max_positions:
        raise bad_request(f"prompt: {len(token_ids)} tokens are more than the model holds", "prompt")
    request = Request.make("(a prompt without a template)", **options)
    taken = route(Modality.TEXT, request.adapter, processor.adapter_names())
    return Prepared(request, Row(tuple(token_ids), taken))


@dataclass
class _Answer:
    """Running prompts' answer on the wire."""

    service: Service
    body: CompletionBody
    prompts: list[str | list[int]]
    generations: list[Generation]

    def __post_init__(self) -> None:
        self._own = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.body.model or self.service.options.names[0],
        }
        self._tokenizer = self.service.model.processor.tokenizer

    async def whole(self) -> dict[str, Any]:
        """The object of a request that does not stream."""
        results = [await generation.replies() for generation in self.generations]
        choices = [
            self._choice(number * self.body.num_replies + index, self._echo(number) + reply.text, reply)
            for number, replies in enumerate(results)
            for index, reply in enumerate(replies)
        ]
        route = route_object(self.generations[0].row.route)
        return {**self._own, "choices": choices, "usage": self._usage(results), "route": route}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a request that streams."""
        streams = [
            self._stream(number, index)
            for number in range(len(self.generations))
            for index in range(self.body.num_replies)
        ]
        async with aclosing(merged(streams)) as chunks:
            async for chunk in chunks:
                yield event({**self._own, "choices": [chunk]})
        results = [[await handle for handle in one.handles] for one in self.generations]
        for generation, replies in zip(self.generations, results, strict=True):
            generation.finished(replies)
        if self.body.wants_usage:
            yield event({**self._own, "choices": [], "usage": self._usage(results)})
        yield DONE

    async def _stream(self, number: int, index: int) -> AsyncGenerator[dict[str, Any], None]:
        place = number * self.body.num_replies + index
        generation = self.generations[number]
        num_sent = 0
        if echo := self._echo(number):
            yield self._choice(place, echo)
        async for piece in generation.pieces(index):
            logprobs = generation.handles[index].logprobs(num_sent)
            num_sent += len(logprobs)
            yield self._choice(place, piece, logprobs=logprobs)
        reply = await generation.handles[index]
        rest = (reply.logprobs or ())[num_sent:]
        yield {**self._choice(place, "", logprobs=rest), "finish_reason": _reason(reply)}

    def _echo(self, number: int) -> str:
        prompt = self.prompts[number]
        if not self.body.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)

    def _usage(self, results: list[list[Reply]]) -> dict[str, Any]:
        usages = [usage_object(one.row, replies) for one, replies in zip(self.generations, results, strict=True)]
        return {
            name: sum(one[name] for one in usages) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        }

    def _choice(
        self, index: int, text: str, reply: Reply | None = None, *, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> dict[str, Any]:
        tokens = (reply.logprobs if reply is not None else logprobs) or ()
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(tokens) if self.body.logprobs is not None else None,
            "finish_reason": None if reply is None else _reason(reply),
        }

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
        texts = [self._text(token.token_id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [{self._text(one): finite(logprob) for one, logprob in token.top} for token in tokens],
            "text_offset": [0, *accumulate(map(len, texts))][: len(texts)],
        }

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _reason(reply: Reply) -> str:
    """A prompt without a template calls no tools."""
    return "stop" if reply.finish_reason == "tool_calls" else reply.finish_reason

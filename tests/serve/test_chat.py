"""Chat by OpenAI's own client, over a real server."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from phi4mm.api import Phi4MM
from phi4mm.types import Modality
from tests.serve.conftest import SAMPLES, Running, wait_until

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 plus 3?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Get the {name} of a city",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
        },
    }
    for name in ("weather", "time")
]


def data_url(name: str, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{encoded(name)}"


def encoded(name: str) -> str:
    return base64.b64encode((SAMPLES / name).read_bytes()).decode()


def image(name: str = "shapes.png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(name)}}


def audio(name: str = "digit.flac") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": encoded(name), "format": "wav"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_an_answer_is_that_of_python(client: OpenAI, bundled: Phi4MM) -> None:
    reply = client.chat.completions.create(model="phi4mm", messages=QUESTION)
    expected = bundled.chat("What is 2 plus 3?")
    [choice] = reply.choices
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.model == "phi4mm"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
    assert reply.usage.completion_tokens == expected.usage.new_tokens
    assert reply.model_extra is not None
    assert reply.model_extra["route"] == {"adapters": [], "audio_projector": None}
    assert reply._request_id is not None


def test_media_route_themselves(client: OpenAI, bundled: Phi4MM) -> None:
    cases: list[tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = [
        ([text("What is this?"), image()], {"images": [SAMPLES / "shapes.png"]}, ["vision"]),
        ([audio(), text("What is this?")], {"audios": [SAMPLES / "digit.flac"]}, ["speech"]),
        (
            [image(), audio(), text("What is this?")],
            {"images": [SAMPLES / "shapes.png"], "audios": [SAMPLES / "digit.flac"]},
            ["vision"],
        ),
    ]
    for parts, media, adapters in cases:
        reply = client.chat.completions.create(model="phi4mm", messages=[{"role": "user", "content": parts}])  # type: ignore[list-item,misc]
        expected = bundled.chat("What is this?", **media)
        assert reply.choices[0].message.content == expected.text
        assert reply.model_extra is not None
        assert reply.model_extra["route"]["adapters"] == adapters
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
        details = reply.usage.prompt_tokens_details
        assert details is not None
        assert bool(details.audio_tokens) == bool(media.get("audios"))


def test_history_with_media_places_them_in_their_turns(client: OpenAI, bundled: Phi4MM) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [text("What is this?"), image()]},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": [audio(), text("And this?")]},
    ]
    reply = client.chat.completions.create(model="phi4mm", messages=messages)
    expected = bundled.chat(
        "<|audio_1|>And this?",
        system="Be short.",
        history=[
            {"role": "user", "content": "<|image_1|>What is this?"},
            {"role": "assistant", "content": "A circle."},
        ],
        images=[SAMPLES / "shapes.png"],
        audios=[SAMPLES / "digit.flac"],
    )
    assert reply.choices[0].message.content == expected.text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_stream_is_the_answer_in_pieces(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="phi4mm", messages=QUESTION)
    stream = client.chat.completions.create(
        model="phi4mm", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_many_at_once_from_an_event_loop(server: Running, bundled: Phi4MM) -> None:
    words = [f"What is {number} plus 3?" for number in range(6)]

    async def ask() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(content: str) -> str | None:
                reply = await client.chat.completions.create(
                    model="phi4mm", messages=[{"role": "user", "content": content}]
                )
                return reply.choices[0].message.content

            return await asyncio.gather(*map(one, words))

    assert asyncio.run(ask()) == [reply.text for reply in bundled.chat_batch([{"text": one} for one in words])]


def test_several_replies_with_a_seed(client: OpenAI) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 8}
    first = client.chat.completions.create(model="phi4mm", messages=QUESTION, **options)
    again = client.chat.completions.create(model="phi4mm", messages=QUESTION, **options)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="phi4mm", messages=QUESTION, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_log_probabilities(client: OpenAI) -> None:
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    reply = client.chat.completions.create(model="phi4mm", messages=QUESTION, **options)
    found = reply.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    spelled = b"".join(bytes(token.bytes or []) for token in found.content).decode()
    assert spelled == reply.choices[0].message.content
    for token in found.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob <= 0
    streamed = [
        token.token
        for chunk in client.chat.completions.create(model="phi4mm", messages=QUESTION, stream=True, **options)
        if (logprobs := chunk.choices[0].logprobs) is not None
        for token in logprobs.content or []
    ]
    assert streamed == [token.token for token in found.content]


def test_length_and_stop_strings(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="phi4mm", messages=QUESTION).choices[0].message.content
    assert whole is not None
    cut = client.chat.completions.create(model="phi4mm", messages=QUESTION, max_completion_tokens=2).choices[0]
    assert cut.finish_reason == "length"
    assert whole.startswith(cut.message.content or "")
    stop = whole[4:6]
    stopped = client.chat.completions.create(model="phi4mm", messages=QUESTION, stop=stop).choices[0]
    assert stopped.message.content == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"


class Colour(BaseModel):
    name: Literal["red", "blue"]
    warm: bool


def test_a_reply_is_parsed_as_a_pydantic_model(client: OpenAI, server: Running) -> None:
    schema_reply = client.chat.completions.parse(
        model="phi4mm", messages=QUESTION, response_format=Colour, max_tokens=200
    )
    assert isinstance(schema_reply.choices[0].message.parsed, Colour)
    reply = client.chat.completions.create(model="phi4mm", messages=QUESTION, extra_body={"regex": "(yes|no)"})
    assert reply.choices[0].message.content in ("yes", "no")
    reply = client.chat.completions.create(
        model="phi4mm", messages=QUESTION, extra_body={"grammar": 'start: "a" | "b"'}
    )
    assert reply.choices[0].message.content in ("a", "b")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "time"}),
        ({"type": "function", "function": {"name": "time"}}, {"time"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            {"weather"},
        ),
    ],
)
def test_tool_calls(client: OpenAI, choice: Any, names: set[str]) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 100}
    reply = client.chat.completions.create(model="phi4mm", messages=QUESTION, **options)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert call.function.name in names
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")

    with client.chat.completions.stream(model="phi4mm", messages=QUESTION, **options) as stream:
        done = [one for one in stream if one.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [(one.name, json.loads(one.arguments)) for one in done] == [
        (call.function.name, json.loads(call.function.arguments))
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert not final.choices[0].message.content

    answer = client.chat.completions.create(
        model="phi4mm",
        messages=[
            *QUESTION,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
        ],
        tools=TOOLS,
        tool_choice="none",
    )
    assert answer.choices[0].message.content is not None
    assert not answer.choices[0].message.tool_calls


def test_the_model_may_name_an_adapter(client: OpenAI) -> None:
    def route(**options: Any) -> list[str]:
        reply = client.chat.completions.create(messages=QUESTION, max_tokens=1, **options)
        assert reply.model_extra is not None
        adapters: list[str] = reply.model_extra["route"]["adapters"]
        return adapters

    assert route(model="phi4mm") == []
    assert route(model="speech") == ["speech"]
    assert route(model="phi4mm", extra_body={"adapter": ["speech", "vision"]}) == ["speech", "vision"]
    assert route(model="speech", extra_body={"adapter": None}) == []
    assert Modality.TEXT == "text"


def test_a_client_that_goes_away_frees_its_row(server: Running, endless: dict[str, Any]) -> None:
    from openai import APITimeoutError

    stats = server.service.model.stats
    with pytest.raises(APITimeoutError):
        server.client().with_options(timeout=0.5).chat.completions.create(model="phi4mm", messages=QUESTION, **endless)
    wait_until(lambda: stats().running + stats().waiting == 0)
    stream = server.client().chat.completions.create(model="phi4mm", messages=QUESTION, stream=True, n=2, **endless)
    next(iter(stream))
    wait_until(lambda: stats().running == 2)
    stream.close()
    wait_until(lambda: stats().running + stats().waiting == 0)
    wait_until(lambda: server.service.admission.num_requests == 0)

"""The responses endpoint by OpenAI's own client, over a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from pydantic import BaseModel

from phi4mm.api import Phi4MM
from tests.serve.conftest import SAMPLES, Running, wait_until
from tests.serve.test_chat import data_url, encoded

QUESTION = "What is 2 plus 3?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": name,
        "description": f"Get the {name} of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
        "strict": True,
    }
    for name in ("weather", "time")
]


def test_an_answer_is_that_of_python(client: OpenAI, bundled: Phi4MM) -> None:
    found = client.responses.create(model="phi4mm", input=QUESTION, instructions="Be short.", metadata={"a": "b"})
    expected = bundled.chat(QUESTION, system="Be short.")
    assert found.output_text == expected.text
    assert found.status == "completed"
    assert found.metadata == {"a": "b"}
    assert found.usage is not None
    assert found.usage.input_tokens == expected.usage.prompt_tokens
    assert found.usage.output_tokens == expected.usage.new_tokens
    assert found.model_extra is not None
    assert found.model_extra["route"] == {"adapters": [], "audio_projector": None}


def test_images_and_audio(client: OpenAI, bundled: Phi4MM) -> None:
    picture: Any = {"type": "input_image", "image_url": data_url("shapes.png"), "detail": "auto"}
    sound: Any = {"type": "input_audio", "input_audio": {"data": encoded("digit.flac"), "format": "wav"}}
    question: Any = {"type": "input_text", "text": "What is this?"}
    for parts, media in (
        ([question, picture], {"images": [SAMPLES / "shapes.png"]}),
        ([sound, question], {"audios": [SAMPLES / "digit.flac"]}),
        ([picture, sound, question], {"images": [SAMPLES / "shapes.png"], "audios": [SAMPLES / "digit.flac"]}),
    ):
        found = client.responses.create(model="phi4mm", input=[{"role": "user", "content": parts}])
        assert found.output_text == bundled.chat("What is this?", **media).text  # type: ignore[arg-type]


def test_a_conversation_is_sent_whole(client: OpenAI, bundled: Phi4MM) -> None:
    first = client.responses.create(model="phi4mm", input=[{"role": "user", "content": QUESTION}])
    found = client.responses.create(
        model="phi4mm",
        input=[
            {"role": "user", "content": QUESTION},
            *first.output,
            {"role": "user", "content": "And 3 plus 4?"},
        ],
    )
    history = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first.output_text}]
    assert found.output_text == bundled.chat("And 3 plus 4?", history=history).text


def test_the_events_of_a_stream(client: OpenAI) -> None:
    whole = client.responses.create(model="phi4mm", input=QUESTION)
    events = list(client.responses.create(model="phi4mm", input=QUESTION, stream=True))
    kinds = [one.type for one in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [one.sequence_number for one in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage


def test_the_clients_stream_helper(client: OpenAI) -> None:
    with client.responses.stream(model="phi4mm", input=QUESTION) as stream:
        pieces = [one.delta for one in stream if one.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text


def test_the_asynchronous_client(server: Running, client: OpenAI) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as asynchronous:
            found = await asynchronous.responses.create(model="phi4mm", input=QUESTION)
            stream = await asynchronous.responses.create(model="phi4mm", input=QUESTION, stream=True)
            return found.output_text, "".join(
                [one.delta async for one in stream if one.type == "response.output_text.delta"]
            )

    expected = client.responses.create(model="phi4mm", input=QUESTION).output_text
    assert asyncio.run(ask()) == (expected, expected)


def test_log_probabilities_and_length(client: OpenAI) -> None:
    found = client.responses.create(
        model="phi4mm",
        input=QUESTION,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        max_output_tokens=3,
    )
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    [item] = found.output
    assert item.type == "message"
    [part] = item.content
    assert part.type == "output_text"
    assert part.logprobs
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    assert "".join(token.token for token in part.logprobs) == part.text
    events = list(client.responses.create(model="phi4mm", input=QUESTION, max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


class Colour(BaseModel):
    name: Literal["red", "blue"]
    warm: bool


def test_output_is_parsed_as_a_pydantic_model(client: OpenAI) -> None:
    found = client.responses.parse(model="phi4mm", input=QUESTION, text_format=Colour)
    assert isinstance(found.output_parsed, Colour)
    plain = client.responses.create(
        model="phi4mm", input=QUESTION, text={"format": {"type": "json_object"}}, max_output_tokens=4
    )
    assert plain.output_text.startswith("{")


def test_tools(client: OpenAI) -> None:
    options: Any = {
        "model": "phi4mm",
        "tools": TOOLS,
        "tool_choice": {"type": "function", "name": "time"},
        "parallel_tool_calls": False,
    }
    found = client.responses.create(input=QUESTION, **options)
    [call] = found.output
    assert call.type == "function_call"
    assert call.name == "time"
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")

    events = list(client.responses.create(input=QUESTION, stream=True, **options))
    kinds = [one.type for one in events if not one.type.endswith(".delta")]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    arguments = "".join(one.delta for one in events if one.type == "response.function_call_arguments.delta")
    assert json.loads(arguments) == json.loads(call.arguments)
    with client.responses.stream(input=QUESTION, **options) as stream:
        [streamed] = stream.get_final_response().output
    assert streamed.type == "function_call"
    assert json.loads(streamed.arguments) == json.loads(call.arguments)

    answer = client.responses.create(
        model="phi4mm",
        tools=TOOLS,
        tool_choice="none",
        input=[
            {"role": "user", "content": QUESTION},
            call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "12 o'clock"},
        ],
    )
    assert answer.output[0].type == "message"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"role": "nobody", "content": "a"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "response_format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_refused(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(**{"model": "phi4mm", "input": QUESTION, **fields})
    assert caught.value.param == param


def test_closing_a_stream_frees_its_row(client: OpenAI, server: Running, endless: dict[str, Any]) -> None:
    stream = client.responses.create(
        model="phi4mm", input=QUESTION, stream=True, extra_body={"logit_bias": endless["logit_bias"]}
    )
    for one in stream:
        if one.type == "response.output_text.delta":
            break
    stream.close()
    wait_until(lambda: server.service.admission.num_requests == 0 and server.service.model.stats().running == 0, 5)

"""What is wrong with a request comes back as OpenAI's error object, with the right status."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from PIL import Image

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from tests.serve.conftest import SAMPLES, Running, running

QUESTION = [{"role": "user", "content": "What is 2 plus 3?"}]
IMAGE = "messages[0].content[0].image_url"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def part(kind: str, **values: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, **values}]}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": part("video_url", video_url={"url": "data:,"})}, "messages[0].content[0].type"),
        ({"messages": part("image_url", image_url={})}, "messages[0].content[0].image_url"),
        ({"messages": part("image_url", image_url={"url": "data:image/png;base64,@@"})}, IMAGE),
        ({"messages": part("image_url", image_url={"url": "data:image/png;base64,QUJD"})}, IMAGE),
        ({"messages": part("image_url", image_url={"url": "http://example.com/a.png"})}, IMAGE),
        ({"messages": part("image_url", image_url={"url": "file:///etc/passwd"})}, IMAGE),
        ({"messages": part("image_url", image_url={"url": png(8000, 8000)})}, IMAGE),
        ({"messages": part("input_audio", input_audio={"data": ""})}, "messages[0].content[0].input_audio"),
        ({"messages": QUESTION, "temperature": -1}, "temperature"),
        ({"messages": QUESTION, "temperature": "hot"}, "temperature"),
        ({"messages": QUESTION, "temperature": 1e999}, "temperature"),
        ({"messages": QUESTION, "n": 0}, "n"),
        ({"messages": QUESTION, "n": 10**4000}, "n"),
        ({"messages": QUESTION, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": QUESTION, "stop": ["a"] * 5}, "stop"),
        ({"messages": QUESTION, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": QUESTION, "tools": [TOOL] * 129}, "tools"),
        ({"messages": QUESTION, "tools": [{"type": "function", "function": {}}]}, "tools[0].function"),
        ({"messages": QUESTION, "tool_choice": "required"}, "tool_choice"),
        ({"messages": QUESTION, "tools": [TOOL], "tool_choice": {"type": "magic"}}, "tool_choice"),
        ({"messages": QUESTION, "response_format": {"type": "xml"}}, "response_format"),
        ({"messages": QUESTION, "response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": QUESTION, "regex": "a" * 70_000}, "regex"),
        ({"messages": QUESTION, "regex": "a", "grammar": "start: /a/"}, "regex"),
        ({"messages": QUESTION, "modalities": ["audio"]}, "modalities"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(server: Running, body: dict[str, Any], param: str) -> None:
    answer = httpx2.post(
        f"{server.url}/v1/chat/completions",
        content=json.dumps(body).replace("Infinity", "1e999"),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert 10 < len(error["message"]) <= 500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra_body": {"adapter": "absent"}}, "adapter 'absent' is not in this model"),
        ({"extra_body": {"regex": "("}}, "regex"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}}, "time"),
        ({"logit_bias": {"99999999": 1}}, "99999999"),
    ],
)
def test_what_only_the_model_can_refuse(client: OpenAI, options: dict[str, Any], words: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words):
            client.chat.completions.create(model="phi4mm", messages=QUESTION, stream=stream, **options)  # type: ignore[call-overload]


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    assert client.models.retrieve("speech").id == "speech"
    assert next(iter(client.models.list())).id == "phi4mm"


def test_other_statuses_are_error_objects_too(server: Running) -> None:
    chat = f"{server.url}/v1/chat/completions"
    cases = [
        (404, httpx2.get(f"{server.url}/v1/nothing")),
        (405, httpx2.get(chat)),
        (415, httpx2.post(chat, content=b"{}", headers={"content-type": "text/plain"})),
        (415, httpx2.post(chat, content=b"{}", headers={"content-encoding": "gzip"})),
        (400, httpx2.post(chat, content=b'{"messages": [', headers={"content-type": "application/json"})),
        (400, httpx2.post(chat, content=b"[" * 100_000, headers={"content-type": "application/json"})),
        (413, httpx2.post(chat, content=b" " * (33 << 20), headers={"content-type": "application/json"})),
        (403, httpx2.post(chat, json={}, headers={"origin": "https://elsewhere.example"})),
        (403, httpx2.post(chat, json={}, headers={"host": "elsewhere.example"})),
        (403, httpx2.post(f"{server.url}/v1/load_lora_adapter", json={})),
    ]
    for status, answer in cases:
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("req_")


def test_limits_of_media(bundled: Phi4MM) -> None:
    limits = Limits(max_pixels=100, max_audio_seconds=0.5, max_images=1)
    audio = base64.b64encode((SAMPLES / "eight_digits.flac").read_bytes()).decode()
    with running(bundled, ServeOptions(limits=limits)) as server:
        client = server.client()

        def ask(content: list[dict[str, Any]]) -> None:
            client.chat.completions.create(model="phi4mm", messages=[{"role": "user", "content": content}])  # type: ignore[list-item,misc]

        with pytest.raises(openai.BadRequestError, match="pixels"):
            ask([{"type": "image_url", "image_url": {"url": png(20, 20)}}])
        with pytest.raises(openai.BadRequestError, match="2 images"):
            ask([{"type": "image_url", "image_url": {"url": png(8, 8)}}] * 2)
        with pytest.raises(openai.APIStatusError, match=r"longer than 0\.5 s") as caught:
            ask([{"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}])
        assert caught.value.status_code == 413

"""Messages to turns: where media are placed, and what is data."""

from __future__ import annotations

from typing import Any

import pytest

from phi4mm.content import MediaPlace
from phi4mm.serve.errors import ApiError
from phi4mm.serve.limits import Limits
from phi4mm.serve.openai.messages import Conversation, Message, read_messages

IMAGE = {"type": "image_url", "image_url": {"url": "data:,a"}}
IMAGE_1, IMAGE_2, AUDIO_1 = MediaPlace("image", 0), MediaPlace("image", 1), MediaPlace("audio", 0)
AUDIO = {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def read(*messages: dict[str, Any], **limits: int) -> Conversation:
    return read_messages([Message.model_validate(one) for one in messages], Limits(**limits))


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([text("a"), text("b")], ("a\nb",)),
        ([IMAGE, text("a")], (IMAGE_1, "a")),
        ([text("a"), IMAGE], (IMAGE_1, "a")),
        ([AUDIO, text("a"), IMAGE], (IMAGE_1, AUDIO_1, "a")),
        ([text("a"), IMAGE, text("b"), IMAGE, AUDIO], ("a", IMAGE_1, "b", IMAGE_2, AUDIO_1)),
        ([IMAGE, IMAGE, text("a")], (IMAGE_1, IMAGE_2, "a")),
        ([AUDIO], (AUDIO_1,)),
    ],
)
def test_media_of_a_turn(parts: list[Any], expected: tuple[Any, ...]) -> None:
    assert read(user(*parts)).text == expected


def test_media_of_all_turns_are_numbered_in_order() -> None:
    found = read(user(IMAGE, text("a")), {"role": "assistant", "content": "b"}, user(IMAGE, AUDIO, text("c")))
    assert found.history == ({"role": "user", "content": (IMAGE_1, "a")}, {"role": "assistant", "content": "b"})
    assert found.text == (IMAGE_2, AUDIO_1, "c")
    assert [medium.param for medium in found.media] == [
        "messages[0].content[0].image_url",
        "messages[2].content[0].image_url",
        "messages[2].content[1].input_audio",
    ]


def test_placeholders_in_text_are_data() -> None:
    assert read(user(IMAGE, text("look: <|image_1|>!"))).text == (IMAGE_1, "look: <|image_1|>!")
    assert read({"role": "system", "content": "<|image_1|>"}, user(text("a"))).system == "<|image_1|>"


def test_roles() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    found = read(
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [text("d")]},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    )
    assert found.system == "s\n\nd"
    assert found.text == ""
    assert found.history[1:] == (
        {"role": "assistant", "tool_calls": [call], "content": ""},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "assistant", "content": [IMAGE]}, "only messages of the user"),
        ({"role": "user", "content": [3]}, "the type is none of"),
        ({"role": "user", "content": {"type": "text"}}, "a string or a list of parts"),
        ({"role": "user", "content": [text("a") | {"text": 1}]}, "expected a string"),
    ],
)
def test_what_is_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        read(message)


def test_limits() -> None:
    with pytest.raises(ApiError, match="3 images"):
        read(user(IMAGE, IMAGE, IMAGE), max_images=2)
    with pytest.raises(ApiError, match="2 messages"):
        read(user(text("a")), user(text("b")), max_messages=1)

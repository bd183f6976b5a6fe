"""What a turn holds, and lists of messages as chat templates take them."""

from __future__ import annotations

from typing import Any

import pytest

from phi4mm import Phi4MM, PromptError, Request
from phi4mm.content import MediaPlace
from tests.media import picture, speech

CAT, DOG, VOICE = b"cat", b"dog", b"voice"


def test_messages_are_a_request() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": CAT}, {"type": "text", "text": "What is <|image_1|>?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And"},
                {"type": "image", "path": "dog.png"},
                {"type": "audio", "audio": VOICE},
            ],
        },
    ]
    expected = Request(
        ("And", MediaPlace("image", 1), MediaPlace("audio", 0)),
        images=[CAT, "dog.png"],
        audios=[VOICE],
        system="Be brief.",
        history=[
            {"role": "user", "content": (MediaPlace("image", 0), "What is <|image_1|>?")},
            {"role": "assistant", "content": "A cat."},
        ],
    )
    assert Request.make(messages) == Request.of(messages) == Request.of({"text": messages}) == expected
    assert Request.make(messages, top_k=3).sampling.top_k == 3


def test_media_may_be_handed_in_beside_the_messages() -> None:
    parts = [{"type": "image"}, {"type": "image", "image": CAT}, {"type": "image"}]
    request = Request.make([{"role": "user", "content": parts}], images=[DOG, b"bird"])
    assert request.images == [DOG, b"bird", CAT]
    assert request.text == tuple(MediaPlace("image", index) for index in (0, 2, 1))
    placed = Request.make([{"role": "user", "content": "<|image_1|>?"}], images=[DOG])
    assert (placed.text, placed.images) == ("<|image_1|>?", [DOG])


def test_tools_in_messages(tiny: Phi4MM) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    request = Request.make(messages)
    assert request.history[1]["tool_calls"] == [call]
    tokenizer, ids = tiny.processor.tokenizer, tiny.processor.row(request).token_ids
    assert '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>' in tokenizer.decode(ids)
    names = ("<|tool_response|>", "<|end|>", "<|assistant|>")
    assert [ids[place] for place in (-4, -2, -1)] == [tokenizer.control(name) for name in names]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "king", "content": "x"}], "message 1 .*king"),
        ([{"role": "user", "content": "x"}, "y"], "message 2 is 'y'"),
        ([{"role": "user", "content": 5}], "message 1.*content.* is 5"),
        ([{"role": "user", "content": [{"type": "video"}]}], "message 1: a part is .*video.*image or audio"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "message 1: a part"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1: the image has no source"),
        ([{"role": "user", "content": [{"type": "image", "image": CAT, "path": "x"}]}], "several sources"),
        ([{"role": "assistant", "content": [{"type": "image", "image": CAT}]}], "assistant"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "last message is the assistant's"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 2 is the system's"),
    ],
)
def test_bad_messages(messages: list[Any], words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        Request.make(messages)
    assert len(str(caught.value)) < 300


def test_history_beside_messages_is_refused() -> None:
    with pytest.raises(PromptError, match="system and a list of messages"):
        Request.make([{"role": "user", "content": "x"}], system="y")
    with pytest.raises(PromptError, match="put it into a list"):
        Request.of({"role": "user", "content": "x"})


def test_messages_are_answered_as_the_request_is(tiny: Phi4MM) -> None:
    image, clip = picture(30, 40), speech(0.4)
    parts = [{"type": "text", "text": "See "}, {"type": "image", "image": image}, {"type": "audio", "audio": clip}]
    messages = [{"role": "user", "content": parts}]
    asked = tiny.chat("See <|image_1|><|audio_1|>", images=[image], audios=[clip], max_new_tokens=6)
    assert tiny.chat(messages, max_new_tokens=6) == asked
    assert tiny.chat_batch([{"text": messages, "max_new_tokens": 6}]) == [asked]
    assert "".join(tiny.stream(messages, max_new_tokens=6)) == asked.text


def test_rows_of_datasets(tiny: Phi4MM) -> None:
    samples, rate = speech(0.4)

    class Decoder:  # as torchcodec's AudioDecoder
        def get_all_samples(self) -> Any:
            import torch

            class Samples:
                data, sample_rate = torch.as_tensor(samples)[None], rate

            return Samples

    options = {"vad": False, "temperature_increment": 0, "max_new_tokens": 4}
    expected = tiny.transcribe((samples, rate), **options)
    for row in ({"path": None, "array": samples, "sampling_rate": rate}, Decoder()):
        assert tiny.transcribe(row, **options) == expected
        assert tiny.transcribe_batch([row], max_new_tokens=4)[0].text == expected.text

"""The Python API over a tiny random model: what goes in and out, not what is said."""

from __future__ import annotations

import json
import pydoc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import phi4mm
from phi4mm import BatchError, Phi4MM, Phi4MMError, PromptError, Request, Route, SamplingParams, Transcript
from tests.media import picture, speech

REQUESTS = [
    Request.make("Hi", max_new_tokens=9),
    Request.make("What?", images=[picture(50, 80)], max_new_tokens=5),
    {"text": "Say", "audios": [speech(0.6)], "max_new_tokens": 12},
    Request.make("Both", images=[picture(64, 64)], audios=[speech(0.5)], temperature=1.0, seed=7, max_new_tokens=8),
]


def test_a_batch_of_every_modality_equals_its_rows_alone(tiny: Phi4MM) -> None:
    together = tiny.chat_batch(REQUESTS)
    assert [reply.route for reply in together] == [
        Route(),
        Route(("vision",)),
        Route(("speech",), "speech"),
        Route(("vision",), "vision"),
    ]
    assert together == [tiny.chat_batch([request])[0] for request in REQUESTS]
    assert together == tiny.chat_batch(REQUESTS, batch_size=3)
    assert together == [tiny.submit(request).result() for request in REQUESTS]
    for request, reply in zip(REQUESTS, together, strict=True):
        request = Request.of(request)
        assert reply.usage.new_tokens <= request.sampling.max_new_tokens
        assert reply.usage.prompt_tokens == len(tiny.processor.row(request).token_ids)


def test_stream_gives_the_text_of_chat(tiny: Phi4MM) -> None:
    reply = tiny.chat("Hello", max_new_tokens=40)
    pieces = list(tiny.stream("Hello", max_new_tokens=40))
    assert "".join(pieces) == reply.text
    assert len(pieces) > 10


def test_stop_strings_end_the_reply_and_are_left_out(tiny: Phi4MM) -> None:
    full = tiny.chat("Hello", max_new_tokens=40)
    assert full.finish_reason == "length"
    stop = full.text[8:11]
    before = full.text[: full.text.index(stop)]
    stopped = tiny.chat("Hello", max_new_tokens=40, stop=["never there", stop])
    assert (stopped.text, stopped.finish_reason) == (before, "stop")
    assert "".join(tiny.stream("Hello", max_new_tokens=40, stop=[stop])) == before
    assert stopped.usage.new_tokens < full.usage.new_tokens


def test_a_seed_repeats_a_sampled_reply(tiny: Phi4MM) -> None:
    first = tiny.chat("Hello", temperature=1.5, seed=3, max_new_tokens=20)
    assert tiny.chat("Hello", temperature=1.5, seed=3, max_new_tokens=20) == first
    assert tiny.chat("Hello", temperature=1.5, seed=4, max_new_tokens=20) != first


def test_one_bad_request_loses_nothing_else(tiny: Phi4MM) -> None:
    bad = [{"text": "x", "images": [b"not a picture"]}, {"text": "<|image_2|>", "images": [picture(9, 9)]}]
    with pytest.raises(BatchError) as caught:
        tiny.chat_batch([bad[0], *REQUESTS, bad[1]], batch_size=2)
    assert set(caught.value.errors) == {0, 5}
    assert caught.value.results == [None, *tiny.chat_batch(REQUESTS), None]
    assert "request 0: image 1" in str(caught.value)
    assert "request 5" in str(caught.value)


def test_transcribe(tiny: Phi4MM) -> None:
    whole = {"vad": False, "temperature_increment": 0, "max_new_tokens": 10}
    transcript = tiny.transcribe(speech(0.8), **whole)
    assert transcript.duration == pytest.approx(0.8)
    asked = tiny.chat("Transcribe the audio clip into text.", audios=[speech(0.8)], max_new_tokens=10)
    assert transcript.text == asked.text.strip()
    translated = tiny.transcribe(speech(0.8), task="translate", to="German", **whole)
    asked = tiny.chat("Translate the audio to German.", audios=[speech(0.8)], max_new_tokens=10)
    assert translated.text == asked.text.strip()
    worded = tiny.transcribe(speech(0.8), prompt="Translate the audio to German.", **whole)
    assert worded.text == translated.text
    assert Transcript.from_dict(json.loads(json.dumps(transcript.to_dict()))) == transcript
    (batched,) = tiny.transcribe_batch([speech(0.8)], max_new_tokens=10)
    assert (batched.text, batched.duration) == (transcript.text, transcript.duration)


def test_transcribe_batch_names_the_bad_clip(tiny: Phi4MM) -> None:
    clips = [speech(0.5), b"not audio", speech(0.7)]
    with pytest.raises(BatchError) as caught:
        tiny.transcribe_batch(clips, max_new_tokens=5)
    assert set(caught.value.errors) == {1}
    alone = [tiny.transcribe_batch([clip], max_new_tokens=5)[0] for clip in (clips[0], clips[2])]
    expected = [alone[0], None, alone[1]]
    assert caught.value.results == expected
    with pytest.raises(phi4mm.AudioError):
        tiny.transcribe(b"not audio")


@pytest.mark.parametrize("options", [{"device": "abacus"}, {"dtype": "int7"}, {"quantize": "int1"}])
def test_bad_load_options(options: dict[str, str]) -> None:
    with pytest.raises(Phi4MMError, match=next(iter(options.values()))):
        Phi4MM.from_pretrained(**options)


def test_device_info(tiny: Phi4MM) -> None:
    info = tiny.device_info
    assert (info.device.type, info.dtype, info.prepacked) == ("cpu", torch.float32, False)
    assert "float32" in str(info)


def test_bad_batch_size(tiny: Phi4MM) -> None:
    with pytest.raises(PromptError, match="batch_size"):
        tiny.chat_batch([], batch_size=0)


def test_importing_is_light() -> None:
    code = "import sys, phi4mm; phi4mm.Request('x'); print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_a_model_is(tiny: Phi4MM) -> None:
    assert tiny.device == torch.device("cpu")
    assert tiny.config.decoder.vocab_size == 272
    assert repr(tiny).startswith("<Phi4MM, 0.2 M parameters, adapters: vision, speech, float32 on cpu")


def test_the_package_shows_its_names() -> None:
    assert set(dir(phi4mm)) == set(phi4mm.__all__)
    text = pydoc.plaintext.document(phi4mm)
    assert "class Phi4MM(" in text
    assert "class Workers(" in text


def test_what_a_transcript_cannot_hold_is_refused(tiny: Phi4MM) -> None:
    for options in ({"n": 2}, {"logprobs": 0}, {"sampling": SamplingParams(n=2)}):
        with pytest.raises(PromptError, match="a transcript"):
            tiny.transcribe(speech(0.5), **options)
        with pytest.raises(PromptError, match="a transcript"):
            tiny.transcribe_batch([speech(0.5)], **options)


@pytest.mark.parametrize("audios", ["one.wav", b"RIFF", speech(0.5), {"array": 1}, np.zeros(16000), 5])
def test_a_batch_is_a_list(tiny: Phi4MM, audios: Any) -> None:
    with pytest.raises(PromptError, match=r"audios is .*list of audios"):
        tiny.transcribe_batch(audios)


def test_token_ids_outside_the_vocabulary(tiny: Phi4MM) -> None:
    for name, value in (("stop_token_ids", [272]), ("banned_tokens", [10**6]), ("logit_bias", {272: 1.0})):
        for ask in (tiny.chat, tiny.stream, lambda text, **option: tiny.submit({"text": text, **option})):
            with pytest.raises(PromptError, match=f"{name}: token id .*expected 0 to 271"):
                ask("x", **{name: value})
        with pytest.raises(BatchError, match=f"request 0: {name}"):
            tiny.chat_batch([{"text": "x", name: value}])


def test_errors_are_short(tiny: Phi4MM) -> None:
    uri = "data:image/png;base64," + "A" * 300_000
    for call in (
        lambda: tiny.chat("x", images=[uri]),
        lambda: tiny.chat("x", audios=[uri]),
        lambda: tiny.transcribe(uri),
        lambda: tiny.transcribe_batch([uri] * 9),
        lambda: tiny.adapters.load("x", uri),
        lambda: tiny.adapters.load(uri, "x"),
        lambda: tiny.chat("x", adapter=uri),
        lambda: tiny.chat(f"<|image_{'7' * 5000}|>", images=[picture(9, 9)]),
        lambda: tiny.transcribe(speech(0.5), task="translate", to="", prompt=uri),
        lambda: tiny.chat("x", **{uri: 1}),
        lambda: Phi4MM.from_pretrained(uri),
    ):
        with pytest.raises(Phi4MMError) as caught:
            call()
        assert len(str(caught.value)) < 1500
    for media in ({"images": [uri]}, {"audios": [uri]}):
        with pytest.raises(Phi4MMError, match="is a URL") as caught:
            tiny.chat("x", **media)
        assert len(str(caught.value)) < 450

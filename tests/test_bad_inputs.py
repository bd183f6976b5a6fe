"""Bad inputs as a user meets them: one ``Phi4MMError`` each, which names the input and says what to do."""

from __future__ import annotations

import io
import wave
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phi4mm import AudioError, ImageError, Phi4MM, Phi4MMError, PromptError
from tests.media import picture, speech


def wav(seconds: float = 0.5, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(int(seconds * rate), np.int16).tobytes())
    return buffer.getvalue()


def png(image: Image.Image | None = None) -> bytes:
    buffer = io.BytesIO()
    (image or picture(40, 40)).save(buffer, "png")
    return buffer.getvalue()


def picture_bomb() -> bytes:
    """A PNG header that promises 50000 x 50000 pixels."""
    content = bytearray(png())
    content[16:24] = (50000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


NOISE = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
BAD_AUDIO: dict[str, Any] = {
    "empty file": b"",
    "truncated wav": wav()[:5000],
    "only a header": wav()[:44],
    "html named wav": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "zeros": bytes(4000),
    "no samples": (NOISE[:0], 16000),
    "shorter than a frame": (NOISE[:100], 16000),
    "NaN samples": (np.where(np.arange(16000) == 5, np.nan, NOISE), 16000),
    "infinite samples": (np.where(np.arange(16000) == 5, np.inf, NOISE), 16000),
    "16-bit integers": ((NOISE * 32767).astype(np.int16), 16000),
    "not scaled": (NOISE * 32767, 16000),
    "rate of zero": (NOISE, 0),
    "rate of 1 Hz": (NOISE, 1),
    "rate of 1 Hz in a file": wav(8000, rate=1),
    "rate of 2 Hz in stereo": (NOISE.reshape(-1, 2), 2),
    "rate of 999 Hz": (NOISE, 999),
    "rate of 2 GHz in a file": wav(1e-5, rate=2_000_000_000),
    "rate is text": (NOISE, "16000"),
    "three dimensions": (NOISE.reshape(10, 40, 40), 16000),
    "too many channels": (NOISE.reshape(10, 1600), 16000),
    "no rate": NOISE,
    "a number": 5,
    "URL": "https://example.org/speech.wav",
    "no such file": "no/such/file.wav",
    "a folder": ".",
}
BAD_IMAGES: dict[str, Any] = {
    "empty file": b"",
    "truncated PNG": png()[:200],
    "html named png": b"<!DOCTYPE html><html></html>",
    "picture bomb": picture_bomb(),
    "1 x 10000": picture(1, 10000),
    "10000 x 1": picture(10000, 1),
    "an array": np.zeros((4, 4, 3)),
    "URL": "https://example.org/cat.png",
    "no such file": "no/such/cat.png",
    "a folder": ".",
}


def check_message(error: Phi4MMError, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert 20 < len(message) < 400
    assert all(word in message for word in words), message


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio(tiny: Phi4MM, kind: str) -> None:
    with pytest.raises(AudioError) as caught:
        tiny.chat("Transcribe", audios=[speech(0.3), BAD_AUDIO[kind]])
    check_message(caught.value, "audio 2")
    with pytest.raises(AudioError):
        tiny.transcribe(BAD_AUDIO[kind])


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(tiny: Phi4MM, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        tiny.chat("What is it?", images=[picture(20, 20), BAD_IMAGES[kind]])
    check_message(caught.value, "image 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "What is <|image_2|>?", "images": [picture(9, 9)]}, ("<|image_2|>", "carries 1")),
        ({"text": "x", "adapter": "music"}, ("music", "vision", "speech")),
        ({"text": "x" * 3000}, ("2048", "shorten")),
        ({"text": "x", "history": [{"role": "user"}]}, ("history turn 1", "content")),
        ({"text": "x", "images": "cat.png"}, ("images", "list")),
        ({}, ("empty", "expected a text")),
        ({"text": " \n"}, ("empty", "expected a text")),
        ({"text": "", "adapter": "speech", "images": [], "system": ""}, ("empty", "expected a text")),
    ],
)
def test_bad_requests(tiny: Phi4MM, options: dict[str, Any], words: tuple[str, ...]) -> None:
    for ask in (tiny.chat, tiny.stream):
        with pytest.raises(PromptError) as caught:
            ask(**options)
        check_message(caught.value, *words)


def test_media_alone_are_a_question(tiny: Phi4MM) -> None:
    for media in ({"images": [picture(9, 9)]}, {"audios": [speech(0.3)]}):
        assert tiny.chat(" ", **media, max_new_tokens=1).usage.new_tokens == 1


def test_a_single_pixel_is_a_picture(tiny: Phi4MM) -> None:
    assert tiny.chat("What is it?", images=[picture(1, 1)], max_new_tokens=1).usage.new_tokens == 1

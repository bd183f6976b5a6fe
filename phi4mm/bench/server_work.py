"""What the server's benchmark asks: rows of all kinds with media of their own, as a client sends them and as
``chat_batch`` takes them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from phi4mm.bench.cases import KINDS, SAMPLING_RATE, job_clips
from phi4mm.types import Request

_SIDE = 448  # pixels of a picture
_SECONDS = 4  # of a clip
_QUESTION = "What is {} plus 3?"


@dataclass(frozen=True)
class Row:
    """One request: its text, and a PNG and a WAV file where its kind has them."""

    kind: str
    text: str
    image: bytes | None = None
    audio: bytes | None = None

    def request(self, new_tokens: int, biases: Mapping[int, float]) -> Request:
        """As ``chat_batch`` takes it."""
        return Request.make(
            self.text,
            images=[self.image] if self.image else (),
            audios=[self.audio] if self.audio else (),
            max_new_tokens=new_tokens,
            logit_bias=dict(biases),
        )

    def body(self, new_tokens: int, biases: Mapping[int, float], *, stream: bool, model: str = "phi4mm") -> bytes:
        """As a client sends it to ``/v1/chat/completions``."""
        parts: list[dict[str, Any]] = []
        if self.image:
            url = f"data:image/png;base64,{_base64(self.image)}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        if self.audio:
            parts.append({"type": "input_audio", "input_audio": {"data": _base64(self.audio), "format": "wav"}})
        parts.append({"type": "text", "text": self.text})
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": parts if len(parts) > 1 else self.text}],
            "max_tokens": new_tokens,
            "stream": stream,
        }
        if biases:
            body["logit_bias"] = {str(token_id): bias for token_id, bias in biases.items()}
        return json.dumps(body).encode()


def rows(count: int, turn: int, kinds: Sequence[str] = KINDS) -> list[Row]:
    """``count`` rows of kinds by turns. No two rows, and none of another ``turn``, share a medium or their text."""
    return [_row(kinds[index % len(kinds)], turn * count + index) for index in range(count)]


def wire(
    row: Row, new_tokens: int, biases: Mapping[int, float], *, stream: bool, model: str = "phi4mm"
) -> dict[str, Any]:
    """A request as the clients' process takes it."""
    body = row.body(new_tokens, biases, stream=stream, model=model)
    return {"path": "/v1/chat/completions", "type": "application/json", "body": _base64(body), "stream": stream}


def wav(samples: np.ndarray) -> bytes:
    """16-bit samples at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _row(kind: str, number: int) -> Row:
    return Row(
        kind,
        _QUESTION.format(number),
        _png(number) if "image" in kind else None,
        wav(_clip(number)) if "audio" in kind else None,
    )


def _png(number: int) -> bytes:
    """A coloured square on white."""
    random = np.random.default_rng(number)
    pixels = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    top, left = random.integers(0, _SIDE // 2, 2)
    pixels[top : top + _SIDE // 2, left : left + _SIDE // 2] = random.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _clip(number: int) -> np.ndarray:
    """Speech under a little noise, which no other number has."""
    clips = [one for one in job_clips(40) if len(one) >= _SECONDS * SAMPLING_RATE]
    samples = clips[number % len(clips)][: _SECONDS * SAMPLING_RATE]
    noise = np.random.default_rng(number).normal(0, 0.001, len(samples))
    return (samples + noise).astype(np.float32)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

"""What a live transcription is set to, as clients read and change it, and audio as they send it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from phi4mm.inputs.audio import SAMPLING_RATE, resampler
from phi4mm.serve.errors import bad_request
from phi4mm.serve.turns import TurnOptions

_EAGERNESS = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.5}  # seconds of silence that end a turn
_MOST_WORDS = 1000
LOGPROBS = "item.input_audio_transcription.logprobs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class AudioFormat(_Part):
    """16-bit little-endian samples, or G.711 at 8 kHz; always one channel."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int = Field(default=24_000, ge=8_000, le=48_000)

    @property
    def sampling_rate(self) -> int:
        return self.rate if self.type == "audio/pcm" else 8_000


class TranscriptionConfig(_Part):
    """What is transcribed and how; ``model`` may name an adapter."""

    model: str | None = Field(default=None, max_length=512)
    language: str | None = Field(default=None, max_length=64)
    prompt: str | None = None
    keywords: list[str] = Field(default=[], max_length=_MOST_WORDS)


class TurnDetection(_Part):
    """When a turn ends. ``semantic_vad`` is by silence too: of a length that its eagerness gives."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=50, le=30_000)
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"

    def options(self, max_seconds: float) -> TurnOptions:
        semantic = self.type == "semantic_vad"
        return TurnOptions(
            threshold=min(max(self.threshold, 0.2), 0.99),
            prefix_seconds=self.prefix_padding_ms / 1000,
            silence_seconds=_EAGERNESS[self.eagerness] if semantic else self.silence_duration_ms / 1000,
            max_seconds=max_seconds,
        )


class AudioInput(_Part):
    format: AudioFormat = AudioFormat()
    transcription: TranscriptionConfig = TranscriptionConfig()
    turn_detection: TurnDetection | None = TurnDetection()
    noise_reduction: Any = None  # there is none


class Audio(_Part):
    input: AudioInput = AudioInput()


class Session(_Part):
    """The object that ``session.update`` changes; what it does not name stays."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[str] = []

    @property
    def input(self) -> AudioInput:
        return self.audio.input

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include

    def updated(self, change: Mapping[str, Any]) -> Session:
        """With a change.

        Raises:
            ValidationError: it is not what a session has.
        """
        return Session.model_validate(_merged(self.model_dump(), change))

    def to_dict(self, name: str) -> dict[str, Any]:
        """As it is on the wire."""
        return {"id": name, "object": "realtime.transcription_session", **self.model_dump()}


def _merged(before: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in change.items():
        old = before.get(name)
        merged[name] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


class Decoder:
    """Samples of a format to float32 at 16 kHz, as they come."""

    def __init__(self, format: AudioFormat) -> None:
        self.format = format
        rate = format.sampling_rate
        self._resampler = None if rate == SAMPLING_RATE else resampler(rate, SAMPLING_RATE)

    def push(self, text: str) -> np.ndarray:
        """The next samples, from base64.

        Raises:
            ApiError: it is not base64, or half a sample.
        """
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise bad_request(f"audio: is not base64 ({error})", "audio") from error
        if self.format.type == "audio/pcm":
            if len(content) % 2:
                raise bad_request("audio: ends within a sample; expected 16-bit samples, two bytes each", "audio")
            samples = np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)
        else:
            samples = _table(self.format.type)[np.frombuffer(content, np.uint8)]
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)


@lru_cache(maxsize=2)
def _table(kind: str) -> np.ndarray:
    """What each byte of G.711 stands for, float32 [256]."""
    codes = np.arange(256)
    if kind == "audio/pcmu":
        codes = ~codes & 0xFF
        exponent, mantissa = (codes >> 4) & 7, codes & 15
        size = (((mantissa << 3) + 0x84) << exponent) - 0x84
        negative = codes & 0x80 != 0
    else:
        codes = codes ^ 0x55
        exponent, mantissa = (codes >> 4) & 7, codes & 15
        size = np.where(exponent > 0, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0), (mantissa << 4) + 8)
        negative = codes & 0x80 == 0
    return (np.where(negative, -size, size) / 32768).astype(np.float32)

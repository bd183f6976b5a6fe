"""Bounds of what clients may send, one by one and all together."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from phi4mm.types import MAX_CHOICES, MAX_LOGPROBS
from phi4mm.validate import check_number, check_whole

MIB = 1 << 20
MOST_ON_CPU = 32_768  # prompt tokens, unless more are asked for: 30 minutes of audio with a question


def _limit(default: float | None, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """Bounds of requests. Each is an option of the command line; its ``help`` says what it bounds.

    Raises:
        PromptError: a value has the wrong type or is out of range; it names the option.
    """

    max_body_bytes: int = _limit(32 * MIB, "bytes of a body, media in base64 included")
    max_upload_bytes: int = _limit(2048 * MIB, "bytes of a body with an uploaded audio file, which goes to disk")
    body_seconds: float = _limit(120.0, "seconds in which a body must arrive")
    upload_seconds: float = _limit(1800.0, "seconds in which a body with an uploaded file must arrive")
    max_text_bytes: int = _limit(MIB, "bytes of all text of a request, which is tokenised before it can be counted")
    max_prompt_tokens: int | None = _limit(
        None,
        f"tokens of a prompt, those of its media included; the model's positions, on a CPU at most {MOST_ON_CPU:,}",
    )
    max_messages: int = _limit(1000, "messages of a conversation")
    max_images: int = _limit(32, "images of a request")
    max_pixels: int = _limit(50_000_000, "pixels of an image")
    max_crops: int = _limit(256, "crops of all images of a request together")
    max_audios: int = _limit(32, "audios of a request")
    max_audio_seconds: float = _limit(1800.0, "seconds of all audio of a chat request together")
    max_upload_seconds: float = _limit(24 * 3600.0, "seconds of an uploaded audio file")
    max_diarized_seconds: float = _limit(7200.0, "seconds of an uploaded audio file whose speakers are looked for")
    max_live_sessions: int = _limit(64, "live transcriptions at a time")
    max_live_seconds: float = _limit(300.0, "seconds of audio that a live transcription may hold uncommitted")
    max_tools: int = _limit(128, "tools of a request")
    max_schema_bytes: int = _limit(64 * 1024, "bytes of a schema, regex, grammar or of all tools")
    max_stop: int = _limit(4, "stop strings")
    max_n: int = _limit(MAX_CHOICES, "replies to one request")
    max_top_logprobs: int = _limit(MAX_LOGPROBS, "log-probabilities for each token")
    default_output_tokens: int = _limit(2048, "tokens of a reply where the request does not say")
    max_output_tokens: int = _limit(131_072, "tokens of a reply")
    max_queue: int = _limit(256, "rows that may wait beside those that are decoded")
    max_total_prompt_tokens: int = _limit(1_000_000, "prompt tokens of all requests at a time")
    max_media_seconds: float = _limit(6 * 3600.0, "seconds of audio of all chat requests at a time")
    max_memory_bytes: int = _limit(2048 * MIB, "bytes of bodies and prepared media of all requests at a time")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(one.default, float):
                check_number(one.name, value, 0, open_below=True)
            else:
                check_whole(one.name, value, 0 if one.name == "max_queue" else 1, or_none=one.default is None)

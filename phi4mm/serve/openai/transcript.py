"""A transcript on OpenAI's wire: its six formats and the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.serve.openai.wire import finite
from phi4mm.serve.speech import Part, SpeechUsage
from phi4mm.transcription.writers import Lines, SrtWriter, VttWriter
from phi4mm.types import Segment, TokenLogprob, Transcript

# What Phi-4-multimodal was trained to transcribe; of other languages the code is reported as it came.
LANGUAGES = {
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "ja": "japanese",
    "pt": "portuguese",
    "zh": "chinese",
}


@dataclass(frozen=True)
class Shown:
    """What of a transcript is shown.

    Attributes:
        task: "transcribe" or "translate".
        language: as clients name it; ``None``: not known.
        segments, words: whether they are listed.
        logprobs: whether those of tokens are reported.
    """

    task: str = "transcribe"
    language: str | None = None
    segments: bool = True
    words: bool = False
    logprobs: bool = False


def plain_json(text: str, usage: SpeechUsage, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """``response_format=json``."""
    found: dict[str, Any] = {"text": text, "usage": token_usage(usage)}
    return found if logprobs is None else {**found, "logprobs": logprobs}


def verbose_json(parts: Sequence[Part], duration: float, shown: Shown) -> dict[str, Any]:
    """``response_format=verbose_json``."""
    found: dict[str, Any] = {
        "task": shown.task,
        "language": language_name(shown.language),
        "duration": round(duration, 3),
        "text": text_of(parts),
    }
    if shown.segments:
        found["segments"] = [_segment(number, part) for number, part in enumerate(parts)]
    if shown.words:
        found["words"] = [
            {"word": word.text, "start": word.start, "end": word.end}
            for part in parts
            for word in part.segment.words or ()
        ]
    return {**found, "usage": duration_usage(duration)}


def diarized_json(segments: Sequence[Segment], duration: float, usage: SpeechUsage) -> dict[str, Any]:
    """``response_format=diarized_json``."""
    return {
        "task": "transcribe",
        "duration": round(duration, 3),
        "text": " ".join(segment.text for segment in segments),
        "segments": [diarized_segment(number, segment) for number, segment in enumerate(segments)],
        "usage": token_usage(usage),
    }


def diarized_segment(number: int, segment: Segment) -> dict[str, Any]:
    """A segment of one speaker, which is an event of a stream too."""
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number}",
        "speaker": segment.speaker,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
    }


def subtitles(parts: Sequence[Part], duration: float, format: str) -> str:
    """``response_format=srt`` or ``vtt``."""
    writer = {"srt": SrtWriter, "vtt": VttWriter}[format](Lines())
    return writer.render(Transcript.of([part.segment for part in parts], duration))


def text_of(parts: Iterable[Part]) -> str:
    """The whole text."""
    return " ".join(part.segment.text for part in parts)


def token_usage(usage: SpeechUsage) -> dict[str, Any]:
    """Usage by tokens."""
    return {
        "type": "tokens",
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_token_details": {
            "audio_tokens": usage.audio_tokens,
            "text_tokens": usage.input_tokens - usage.audio_tokens,
        },
    }


def duration_usage(seconds: float) -> dict[str, Any]:
    """Usage by duration."""
    return {"type": "duration", "seconds": round(seconds, 3)}


def logprob_items(tokens: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Log-probabilities of a transcript's tokens."""
    found = []
    for token in tokens:
        content = tokenizer.token_bytes(token.token_id)
        text = content.decode("utf-8", "replace")
        found.append({"token": text, "logprob": finite(token.logprob), "bytes": list(content)})
    return found


def language_name(language: str | None) -> str:
    """A language as verbose_json has it; "unknown" where the client does not say: the model does not report it."""
    return "unknown" if language is None else LANGUAGES.get(language.lower(), language)


def _segment(number: int, part: Part) -> dict[str, Any]:
    segment = part.segment
    return {
        "id": number,
        "seek": round(100 * segment.start),  # Whisper's frames of 10 ms
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(part.reply.token_ids),
        "temperature": segment.temperature,
        "avg_logprob": finite(segment.avg_logprob or 0.0),
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob or 0.0,
    }

"""What users hand in and get back: requests, replies and transcripts. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict

from phi4mm.errors import PromptError
from phi4mm.model.router import Route

DEFAULT_MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Request:
    """One row: a question with its media, and how to answer it.

    Attributes:
        text: the user's text. It is data: control tokens in it are read as plain text. It may place the request's
            media with ``<|image_1|>``, ``<|audio_1|>``; without placeholders images, then audios, come first.
        images: each a path, bytes, an open binary file or a ``PIL.Image.Image``.
        audios: each a path, bytes, an open binary file or ``(samples, sampling_rate)``, samples in [-1, 1].
        system: the system message.
        history: earlier turns, each ``{"role": "user" | "assistant" | "tool", "content": text}``. User turns may place
            the request's media too.
        tools: tool definitions, each a JSON-serialisable mapping.
        adapter: ``"auto"`` (by modality), ``None`` (the bare decoder), or an adapter's name.
        max_new_tokens: the most tokens to generate.
        temperature: 0 for greedy decoding; otherwise what the logits are divided by.
        top_p: keep the smallest set of tokens whose probability exceeds this.
        top_k: keep this many tokens; 0 keeps all.
        repetition_penalty: over 1 makes tokens that are in the row already less likely (Keskar et al. 2019).
        stop: strings that end the reply; they are not part of it.
        seed: of this row's own random generator; ``None`` for a fresh one.

    Raises:
        PromptError: an option is out of range, or the text is not a string.
    """

    text: str = ""
    images: Sequence[Any] = ()
    audios: Sequence[Any] = ()
    system: str | None = None
    history: Sequence[Mapping[str, str]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    adapter: str | None = "auto"
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(isinstance(self.text, str), f"text is a {type(self.text).__name__}; expected a string")
        for name in ("images", "audios"):
            media = getattr(self, name)
            _require(
                isinstance(media, Sequence) and not isinstance(media, str | bytes),
                f"{name} is a {type(media).__name__}; expected a list of {name}, even for a single one",
            )
        _require(not isinstance(self.stop, str), f"stop is the string {self.stop!r}; expected a list of strings")
        _require(all(isinstance(stop, str) and stop for stop in self.stop), "stop: expected non-empty strings")
        _require(
            isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1,
            f"max_new_tokens is {self.max_new_tokens!r}; expected a whole number, 1 or more",
        )
        _require(_within(self.temperature, 0.0, 100.0), f"temperature is {self.temperature!r}; expected 0 to 100")
        _require(_within(self.top_p, 0.0, 1.0) and self.top_p > 0, f"top_p is {self.top_p!r}; expected over 0, up to 1")
        _require(isinstance(self.top_k, int) and self.top_k >= 0, f"top_k is {self.top_k!r}; expected 0 (all) or more")
        _require(
            _within(self.repetition_penalty, 0.0, 100.0) and self.repetition_penalty > 0,
            f"repetition_penalty is {self.repetition_penalty!r}; expected over 0 (1 changes nothing)",
        )

    @classmethod
    def of(cls, value: Request | Mapping[str, Any]) -> Request:
        """A request from a request or a mapping with its fields.

        Raises:
            PromptError: a key is not a field, or the value is neither.
        """
        if isinstance(value, Request):
            return value
        _require(isinstance(value, Mapping), f"a request is a {type(value).__name__}; expected a Request or a dict")
        known = [field.name for field in fields(cls)]
        unknown = [str(key) for key in value if key not in known]
        _require(not unknown, f"a request has unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PromptError(message)


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high


@dataclass(frozen=True)
class Usage:
    """Tokens of a reply: of the prompt (media included), and generated (the stop token included)."""

    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Reply:
    """What the model answered.

    Attributes:
        text: the answer; tool calls stand in it as ``<|tool_call|>[...]<|/tool_call|>``.
        token_ids: what was generated, without the token that ended it.
        route: the adapter and audio projector that answered.
        finish_reason: "stop" (a stop token or string) or "length".
        avg_logprob: mean natural log-probability of the generated tokens, at temperature 1. Rounding in it depends on
            the batch, so equality passes it over.
        usage: token counts.
        tool_calls: the calls in ``text``, parsed: mappings with "name" and "arguments".
    """

    text: str
    token_ids: tuple[int, ...]
    route: Route
    finish_reason: str
    avg_logprob: float = field(compare=False)
    usage: Usage
    tool_calls: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Word:
    """A word, and where it is said in seconds from the audio's start: estimates, see docs/asr.md."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of audio with its words.

    Attributes:
        start, end: where it is said, in seconds from the audio's start.
        text: what is said.
        avg_logprob: mean natural log-probability of its tokens; like all below, ``None`` where not measured.
        compression_ratio: how many times shorter zlib makes the text; over about 2.4 it repeats itself.
        no_speech_prob: how probably there is no speech, as the speech detector hears it.
        temperature: at which it was decoded; over 0 where lower ones failed.
        words: when each word is said (``word_timestamps=True``).
    """

    start: float
    end: float
    text: str
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None
    words: tuple[Word, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Segment:
        """From the form that it has in ``Transcript.to_dict``."""
        words = values.get("words")
        return cls(**{**values, "words": None if words is None else tuple(Word(**word) for word in words)})


@dataclass(frozen=True)
class Transcript:
    """What was said: the text, its segments, and the audio's duration in seconds."""

    text: str
    segments: tuple[Segment, ...]
    duration: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, segments: Sequence[Segment], duration: float) -> Transcript:
        """The transcript that these segments make up."""
        return cls(" ".join(segment.text for segment in segments), tuple(segments), duration)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transcript:
        """The inverse of ``to_dict``; keys that a transcript does not have are passed over."""
        segments = tuple(Segment.from_dict(segment) for segment in values["segments"])
        return cls(values["text"], segments, values["duration"])


class RequestOptions(TypedDict, total=False):
    """The fields of ``Request`` beside its text, as keyword arguments."""

    images: Sequence[Any]
    audios: Sequence[Any]
    system: str | None
    history: Sequence[Mapping[str, str]]
    tools: Sequence[Mapping[str, Any]]
    adapter: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: Sequence[str]
    seed: int | None


class DecodingOptions(TypedDict, total=False):
    """The fields of ``Request`` that say how to answer, as keyword arguments."""

    adapter: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: Sequence[str]
    seed: int | None

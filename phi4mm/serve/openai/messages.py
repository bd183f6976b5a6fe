"""OpenAI's messages to a request's text, history and media."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from phi4mm.content import Content, MediaPlace
from phi4mm.serve.errors import bad_request
from phi4mm.serve.limits import Limits
from phi4mm.serve.media import Medium

_IMAGE_PARTS = ("image_url", "input_image")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


class Message(BaseModel):
    """A message of a chat; ``content`` is checked by ``read_messages``."""

    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Conversation:
    """What messages come to.

    Attributes:
        text: of the last message, if it is the user's, with the places of its media.
        history: the turns before, as ``phi4mm.Request`` has them.
        system: all system messages together.
        media: of all turns, in their order.
    """

    text: Content
    history: tuple[dict[str, Any], ...]
    system: str | None
    media: tuple[Medium, ...]

    def of_kind(self, kind: str) -> list[int]:
        """The places in ``media`` of a kind's."""
        return [index for index, medium in enumerate(self.media) if medium.kind == kind]


Segment = str | Medium


def read_messages(messages: Sequence[Message], limits: Limits, param: str = "messages") -> Conversation:
    """The conversation that messages make up.

    Media stand where their parts do: between texts, or at the beginning of their turn, images first, where no text
    follows. Text is data: ``<|image_1|>`` in it places nothing.

    Raises:
        ApiError: a part is of a kind that is not taken, or there are too many.
    """
    if not messages:
        raise bad_request(f"{param}: is empty; expected at least one message", param)
    if len(messages) > limits.max_messages:
        raise bad_request(f"{param}: {len(messages)} messages; this server takes {limits.max_messages}", param)
    system: list[str] = []
    turns: list[tuple[dict[str, Any], list[Segment]]] = []
    for index, message in enumerate(messages):
        segments = _segments(message, f"{param}[{index}]")
        if message.role in ("system", "developer"):
            system.append(_text(segments))
            continue
        turn: dict[str, Any] = {"role": message.role}
        if message.role == "assistant" and message.tool_calls:
            turn["tool_calls"] = message.tool_calls
        if message.role == "tool" and message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append((turn, segments))

    texts = [*system, *(one for _, segments in turns for one in segments if isinstance(one, str))]
    check_text(texts, limits, param)
    media = [segment for _, segments in turns for segment in segments if isinstance(segment, Medium)]
    _check_counts(media, limits, param)
    places = _places(media)
    history = tuple(
        {**turn, "content": _content(segments, places) if turn["role"] == "user" else _text(segments)}
        for turn, segments in turns
    )
    last_is_user = bool(history) and history[-1]["role"] == "user"
    return Conversation(
        text=history[-1]["content"] if last_is_user else "",
        history=history[:-1] if last_is_user else history,
        system="\n\n".join(system) if system else None,
        media=tuple(media),
    )


def check_text(texts: Iterable[str], limits: Limits, param: str) -> None:
    """Refuse more text than is worth tokenising.

    Raises:
        ApiError: it is over the limit.
    """
    if sum(len(text.encode()) for text in texts) > limits.max_text_bytes:
        message = f"{param}: the text is over this server's {limits.max_text_bytes} bytes"
        raise bad_request(message, param, "context_length_exceeded")


def _segments(message: Message, param: str) -> list[Segment]:
    content = message.content
    if content is None and message.role == "assistant":
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise bad_request(f"{param}.content: expected a string or a list of parts", f"{param}.content")
    segments: list[Segment] = []
    for index, part in enumerate(content):
        where = f"{param}.content[{index}]"
        segment = _segment(part, where)
        if isinstance(segment, Medium) and message.role != "user":
            raise bad_request(f"{where}: only messages of the user may have images and audio", where)
        segments.append(segment)
    return _ordered(segments) if message.role == "user" else segments


def _segment(part: Any, where: str) -> Segment:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise bad_request(f"{where}.text: expected a string", f"{where}.text")
        return text
    if kind in _IMAGE_PARTS or kind == "audio_url":
        field = "audio_url" if kind == "audio_url" else "image_url"
        url = part.get(field)
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str) or not url:
            raise bad_request(f'{where}.{field}: expected {{"url": "data:..."}}', f"{where}.{field}")
        return Medium("audio" if kind == "audio_url" else "image", f"{where}.{field}", url)
    if kind == "input_audio":
        given = part.get("input_audio")
        data = given.get("data") if isinstance(given, dict) else None
        if not isinstance(data, str) or not data:
            raise bad_request(
                f'{where}.input_audio: expected {{"data": base64, "format": "wav"}}', f"{where}.input_audio"
            )
        return Medium("audio", f"{where}.input_audio", data, is_url=False)
    raise bad_request(f"{where}: the type is none of text, image_url, input_audio and audio_url", f"{where}.type")


def _ordered(segments: list[Segment]) -> list[Segment]:
    """Media before the text, unless they stand between texts."""
    texts = [place for place, segment in enumerate(segments) if isinstance(segment, str) and segment.strip()]
    media = [place for place, segment in enumerate(segments) if isinstance(segment, Medium)]
    if texts and any(texts[0] < place < texts[-1] for place in media):
        return segments
    images = [one for one in segments if isinstance(one, Medium) and one.kind == "image"]
    audios = [one for one in segments if isinstance(one, Medium) and one.kind == "audio"]
    return [*images, *audios, *(one for one in segments if isinstance(one, str))]


def _check_counts(media: Sequence[Medium], limits: Limits, param: str) -> None:
    for kind, most in (("image", limits.max_images), ("audio", limits.max_audios)):
        count = sum(medium.kind == kind for medium in media)
        if count > most:
            raise bad_request(f"{param}: {count} {kind}s; this server takes at most {most}", param, "over_limit")


def _places(media: Sequence[Medium]) -> dict[int, MediaPlace]:
    """The place of each medium, by its identity."""
    counts = {"image": 0, "audio": 0}
    places: dict[int, MediaPlace] = {}
    for medium in media:
        places[id(medium)] = MediaPlace(medium.kind, counts[medium.kind])
        counts[medium.kind] += 1
    return places


def _content(segments: Sequence[Segment], places: dict[int, MediaPlace]) -> Content:
    """A user's turn: texts that follow each other stand on lines of their own."""
    parts: list[str | MediaPlace] = []
    for segment in segments:
        if not isinstance(segment, str):
            parts.append(places[id(segment)])
        elif parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]}\n{segment}"
        else:
            parts.append(segment)
    return tuple(parts)


def _text(segments: Sequence[Segment]) -> str:
    """A turn that has no media."""
    return "\n".join(str(segment) for segment in segments)

"""What a turn holds: text with the places of media in it; and lists of messages, as chat templates take them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi4mm.errors import PromptError, shortened
from phi4mm.validate import check_choice, check_sequence, check_whole, wrong

# ASCII digits alone: \d would take those of every script.
_PLACEHOLDER = re.compile(r"<\|(image|audio)_([0-9]+)\|>")
_MOST_DIGITS = 9
_KINDS = ("image", "audio")
_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class MediaPlace:
    """Where a medium's tokens go: ``kind`` is "image" or "audio", ``index`` counts from 0 among its kind."""

    kind: str
    index: int

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _KINDS)
        check_whole("index", self.index, 0)


# A string, in which placeholders place media; or its parts, in which strings are plain text, whatever they hold.
Content = str | tuple[str | MediaPlace, ...]


def is_content(value: Any) -> bool:
    """Whether a value is the content of a turn."""
    if isinstance(value, str):
        return True
    return isinstance(value, tuple) and all(isinstance(part, str | MediaPlace) for part in value)


def is_blank(content: Content) -> bool:
    """Whether a turn holds no text but blanks, and places no media."""
    return not any(isinstance(part, MediaPlace) or part.strip() for part in parts_of(content))


def parts_of(content: Content) -> tuple[str | MediaPlace, ...]:
    """A turn's content as parts, without a look at its placeholders."""
    return (content,) if isinstance(content, str) else content


def placeholders(text: str) -> list[tuple[str, str]]:
    """Kind and placeholder ("<|image_1|>") of each placeholder in a text."""
    return [(match[1], match[0]) for match in _PLACEHOLDER.finditer(text)]


def with_places(content: Content, counts: Mapping[str, int]) -> tuple[str | MediaPlace, ...]:
    """The parts of a user's turn, in a string those of its placeholders whose kind of medium the request carries.

    Args:
        counts: how many of each kind it carries.

    Raises:
        PromptError: a placeholder's number is not that of one.
    """
    if not isinstance(content, str):
        for place in content:
            if isinstance(place, MediaPlace):
                _check_number(place.kind, place.index, f"<|{place.kind}_{place.index + 1}|>", counts)
        return content
    parts: list[str | MediaPlace] = []
    start = 0
    for match in _PLACEHOLDER.finditer(content):
        if not counts[match[1]]:
            continue
        digits = match[2].lstrip("0") or "0"
        index = int(digits) - 1 if len(digits) <= _MOST_DIGITS else -1
        _check_number(match[1], index, match[0], counts)
        parts += [content[start : match.start()], MediaPlace(match[1], index)]
        start = match.end()
    return (*parts, content[start:])


def _check_number(kind: str, index: int, placeholder: str, counts: Mapping[str, int]) -> None:
    if not 0 <= index < counts[kind]:
        raise PromptError(
            f"the text places {shortened(placeholder, 40)}, but the request carries {counts[kind]} {kind}(s); number "
            f"them from 1, or pass the missing {kind}"
        )


def appended(own: str, *more: tuple[str, str]) -> Content:
    """A prompt's own text, and after it pairs of own and of plain text, in which nothing is a placeholder."""
    if not any(_PLACEHOLDER.search(part) for _, part in more):
        return own + "".join(first + second for first, second in more)
    # The one medium of a speech prompt is its audio.
    return with_places(own, {"image": 0, "audio": 1}) + tuple(part for pair in more for part in pair)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, rather than a text."""
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


@dataclass
class _Media:
    """The media of one kind: those that were handed in beside the messages, then those in them."""

    kind: str
    sources: list[Any]
    num_taken: int = 0  # of those beside
    num_given: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_given = len(self.sources)

    def place(self, part: Mapping[str, Any], name: str) -> MediaPlace:
        """Where the medium of a part goes; a part without a source takes the next of those beside the messages."""
        found = [part[key] for key in (self.kind, "path", "url", "bytes") if part.get(key) is not None]
        if len(found) > 1:
            raise PromptError(f"{name} has several sources; expected one of {self.kind}, path, bytes")
        if found:
            self.sources.append(found[0])
            return MediaPlace(self.kind, len(self.sources) - 1)
        if self.num_taken == self.num_given:
            raise PromptError(
                f'{name} has no source; expected {{"type": "{self.kind}", "{self.kind}": a path, bytes, ...}}, or '
                f"{self.kind}s= with one for each"
            )
        self.num_taken += 1
        return MediaPlace(self.kind, self.num_taken - 1)


def read_messages(messages: Sequence[Any], images: Any = (), audios: Any = ()) -> dict[str, Any]:
    """The fields text, history, system, images and audios of a ``Request``, from messages as chat templates take them.

    Args:
        messages: each ``{"role": "system" | "user" | "assistant" | "tool", "content": text or parts}``; the last one is
            the user's or a tool's. Parts are ``{"type": "text", "text": ...}``, ``{"type": "image", "image": source}``
            and ``{"type": "audio", "audio": source}``; "path" may stand for the latter keys. In a part's text nothing
            is a placeholder. A medium without a source is the next of ``images`` or ``audios``. The assistant's
            messages may have "tool_calls", a tool's a "tool_call_id".
        images, audios: media that the messages place without holding them.

    Raises:
        PromptError: a message is wrong; it is named by its number, from 1.
    """
    media = {}
    for kind, sources in (("image", images), ("audio", audios)):
        check_sequence(f"{kind}s", sources, f"{kind}s, even for a single one")
        media[kind] = _Media(kind, list(sources))
    system: str | None = None
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(
                f"message {number}", message, f'a mapping with "role" (one of {", ".join(_ROLES)}) and "content"'
            )
        content = _content(message, role, f"message {number}", media)
        if role in ("system", "developer"):
            if number > 1:
                raise PromptError(f"message {number} is the system's; expected that it is the first, or none")
            system = content if isinstance(content, str) else "".join(str(part) for part in content)
        else:
            kept = {key: message[key] for key in ("tool_calls", "tool_call_id") if message.get(key) is not None}
            turns.append({"role": role, "content": content, **kept})
    if not turns or turns[-1]["role"] == "assistant":
        last = "the assistant's" if turns else "missing"
        raise PromptError(f"the last message is {last}; expected the user's, or a tool's result")
    text = turns.pop()["content"] if turns[-1]["role"] == "user" else ""
    return {
        "text": text,
        "history": turns,
        "system": system,
        **{f"{kind}s": one.sources for kind, one in media.items()},
    }


def _content(message: Mapping[str, Any], role: str, name: str, media: Mapping[str, _Media]) -> Content:
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise wrong(f'{name}: "content"', content, "a text, or a list of parts")
    parts: list[str | MediaPlace] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif isinstance(kind, str) and kind in _KINDS and role == "user":
            parts.append(media[kind].place(part, f"{name}: the {kind}"))
        else:
            allowed = "text, image or audio" if role == "user" else f"text, as it is the {role}'s"
            raise wrong(f"{name}: a part", part, f'{{"type": ..., ...}} of type {allowed}')
    return tuple(parts) if role == "user" else "".join(str(part) for part in parts)

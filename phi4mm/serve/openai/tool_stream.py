"""Tool calls out of a text that comes piece by piece: the name as soon as it is there, arguments as they come."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi4mm.serve.openai.tools import MARKS

_MAY_BE_CALL = re.compile(r"^[ ]*(?:[\[{]|```)", re.MULTILINE)


@dataclass(frozen=True)
class Content:
    """Text that is not of a tool call."""

    text: str


@dataclass(frozen=True)
class CallDelta:
    """A part of a call's arguments; with ``name``: the call begins."""

    index: int
    arguments: str
    name: str | None = None


Delta = Content | CallDelta


class ToolStream:
    """Takes the pieces of a reply that may call tools.

    From a line on that begins as JSON or a fence does, text is held back until its end, as it may be a call without a
    mark.
    """

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0
        self._calls: _CallScanner | None = None

    def push(self, piece: str) -> Iterator[Delta]:
        """What a piece of the text adds."""
        if self._calls is not None:
            yield from self._calls.push(piece)
            return
        self._text += piece
        found = [(place, mark) for mark in MARKS if (place := self._text.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            if self._text[self._sent : place].strip():
                yield Content(self._text[self._sent : place])
            self._sent = place
            self._calls = _CallScanner()
            yield from self._calls.push(self._text[place + len(mark) - mark.endswith("[") :])
        else:
            begins = _MAY_BE_CALL.search(self._text)
            end = begins.start() if begins else len(self._text) - _held_back(self._text)
            if self._text[:end].strip() and end > self._sent:
                yield Content(self._text[self._sent : end])
                self._sent = end

    def finish(self, calls: Sequence[Mapping[str, Any]]) -> Iterator[Delta]:
        """The rest, once the reply is there with the calls that were found in it."""
        begun = self._calls.num_calls if self._calls is not None else 0
        if begun:
            return
        if calls:
            for index, call in enumerate(calls):
                arguments = call.get("arguments", call.get("parameters", {}))
                yield CallDelta(index, json.dumps(arguments, ensure_ascii=False), str(call.get("name", "")))
        else:
            rest = self._text[self._sent :] + (self._calls.after if self._calls is not None else "")
            if rest:
                yield Content(rest)


class _CallScanner:
    """Reads ``[{"name": ..., "arguments": {...}}, ...]`` character by character.

    Attributes:
        num_calls: that have begun.
        after: what was read after the first piece, for replies in which no call is found.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self.after = ""
        self._first = True
        self._depth = 0  # of braces within a call; 0: outside of one
        self._word: str | None = None  # the string that is read, as it is written
        self._escaped = False
        self._place = "key"  # of the call's member: "key", "before" its value, "value"
        self._key = ""
        self._name: str | None = None
        self._early = ""  # arguments that came before the name

    def push(self, piece: str) -> Iterator[CallDelta]:
        if not self._first:
            self.after += piece
        self._first = False
        arguments = ""
        for char in piece:
            name, added = self._read(char)
            if name is not None:
                if arguments:
                    yield CallDelta(self.num_calls - 1, arguments)
                    arguments = ""
                self.num_calls += 1
                yield CallDelta(self.num_calls - 1, "", name)
            arguments += added
        if arguments:
            yield CallDelta(self.num_calls - 1, arguments)

    def _read(self, char: str) -> tuple[str | None, str]:
        """The name of a call that is known with this character, and what it adds to the arguments."""
        if self._depth == 0:
            if char == "{":
                self._depth, self._place, self._key, self._name, self._early = 1, "key", "", None, ""
            return None, ""
        if self._depth == 1 and self._word is None:
            if char in ",}":
                self._place, self._key, self._depth = "key", "", int(char == ",")
                return None, ""
            if char == ":" and self._place == "key":
                self._place = "before"
                return None, ""
        if self._place == "before" and not char.isspace():
            self._place = "value"
        is_argument = self._place == "value" and self._key in ("arguments", "parameters")
        word = self._lex(char)
        if word is not None and self._place == "key":
            self._key = word
        elif word is not None and self._key == "name" and self._name is None:
            self._name = word
            return word, self._early
        if is_argument and self._name is None:
            self._early += char
        return None, char if is_argument and self._name is not None else ""

    def _lex(self, char: str) -> str | None:
        """Keep count of strings and braces; returns a string of the call's own level that ends here."""
        if self._word is None:
            if char == '"':
                self._word = ""
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
            return None
        if self._escaped:
            self._escaped = False
        elif char == '"':
            word, self._word = self._word, None
            return _unescaped(word) if self._depth == 1 else None
        else:
            self._escaped = char == "\\"
        self._word += char
        return None


def _unescaped(word: str) -> str:
    """A JSON string's value; as it is written where it is not one."""
    try:
        return str(json.loads(f'"{word}"', strict=False))
    except json.JSONDecodeError:
        return word


def _held_back(text: str) -> int:
    """Length of the longest end of a text that may be the beginning of a mark."""
    sizes = (size for mark in MARKS for size in range(1, len(mark)) if text.endswith(mark[:size]))
    return max(sizes, default=0)

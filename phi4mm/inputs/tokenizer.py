"""Text to token ids and back, with text and control tokens kept apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from tokenizers import Tokenizer as _Tokenizer

from phi4mm.errors import CheckpointError, PromptError

T = TypeVar("T")

_TOOL_CALL_MARKS = ("<|tool_call|>", "<|/tool_call|>")
_CONTROL_FORM = re.compile(r"<\|.+\|>")
# What the tokenizers library strips beside a token: Unicode's White_Space. str.strip() without arguments takes more.
_BLANKS = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000"
)


class _AddedToken(BaseModel):
    """An entry of "added_tokens": see the tokenizers library's ``AddedToken``."""

    model_config = ConfigDict(strict=True, frozen=True)

    id: int = Field(ge=0, lt=2**31)
    content: str = Field(min_length=1)
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @property
    def is_control(self) -> bool:
        """Whether it is part of the template, not of text: in several Phi-4 files "special" is false for the tokens of
        tools, too."""
        return self.special or _CONTROL_FORM.fullmatch(self.content) is not None

    @property
    def is_visible(self) -> bool:
        """Whether it stays in the text of a reply."""
        return not self.special or self.content in _TOOL_CALL_MARKS

    @property
    def pattern(self) -> str:
        escaped = re.escape(self.content)
        return rf"(?<!\w){escaped}(?!\w)" if self.single_word else escaped


_AddedTokens = TypeAdapter(list[_AddedToken])


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes (GPT-2's ``bytes_to_unicode``): printable ones of Latin-1 stand
    for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()


class Tokenizer:
    """A byte-level BPE tokenizer whose control tokens are got by name only, never from text.

    Of the file's added tokens, those that are "special" or written ``<|...|>`` are control tokens. The others, such as
    ``<think>``, are part of text, one token each.

    Args:
        file: a ``tokenizer.json`` (Hugging Face tokenizers).

    Attributes:
        file: as given.

    Raises:
        CheckpointError: the file is missing or not a tokenizer.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            added = _AddedTokens.validate_python(description.pop("added_tokens", None) or [])
            description |= {"truncation": None, "padding": None}  # left by training: text is encoded whole
            if isinstance(description.get("model"), dict) and "dropout" in description["model"]:
                description["model"]["dropout"] = None  # left by training, too: it splits text at random
            # Without its added tokens the tokenizer cannot find a control token in text.
            self._text = _Tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror}); expected a tokenizer.json") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, ("added_tokens", *first["loc"])))
            raise CheckpointError(
                f"{file}: {place}: {first['msg']}, found {first['input']!r:.80}; download the checkpoint again"
            ) from error
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(
                f"{file}: not a tokenizer.json ({error!s:.200}); download the checkpoint again"
            ) from error
        self._added = {token.id: token for token in added}
        self._control = {token.content: token.id for token in added if token.is_control}
        self._in_text = {token.content: token.id for token in added if not token.is_control}
        # The longer of two that begin alike counts.
        patterns = [token.pattern for token in sorted(added, key=lambda t: -len(t.content)) if not token.is_control]
        self._find_in_text = re.compile(f"({'|'.join(patterns)})") if patterns else None
        self._lstrip = frozenset(token.id for token in added if token.lstrip)
        self._rstrip = frozenset(token.id for token in added if token.rstrip)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max([self._text.get_vocab_size(with_added_tokens=False) - 1, *self._added]) + 1

    @cached_property
    def longest_token(self) -> int:
        """The most characters that one token stands for."""
        return max(map(len, (*self._text.get_vocab(with_added_tokens=False), *self._in_text)), default=1)

    def control(self, name: str) -> int:
        """The id of a control token such as ``"<|end|>"``.

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        if name not in self._control:
            raise CheckpointError(f"the tokenizer has no control token {name}; expected one of the Phi-4 family")
        return self._control[name]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; what looks like a control token is spelled out.

        Raises:
            PromptError: the text holds code points that UTF-8 cannot express (lone surrogates).
        """
        return self.join([text])

    def join(self, parts: Iterable[str | int | T]) -> list[int | T]:
        """Token ids of a prompt.

        White space beside a token whose "lstrip" or "rstrip" is true is swallowed by it, as in the tokenizers library.

        Args:
            parts: plain text, ids of control tokens, and what stands for something else, which is kept as it is.

        Raises:
            PromptError: as for ``encode``.
        """
        pieces: list[str | int | T] = []
        for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
            run = list(group)
            pieces += self._split("".join(map(str, run))) if is_text else run
        ids: list[int | T] = []
        for before, piece, after in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False):
            if isinstance(piece, str):
                piece = piece.lstrip(_BLANKS) if before in self._rstrip else piece
                piece = piece.rstrip(_BLANKS) if after in self._lstrip else piece
                ids += self._text.encode(piece, add_special_tokens=False).ids
            else:
                ids.append(piece)
        return ids

    def _split(self, text: str) -> list[str | int]:
        """Text apart from the added tokens in it."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds {text[error.start]!r} at position {error.start}, which is half of a character "
                "(a lone surrogate); remove it or decode the text as UTF-8"
            ) from error
        parts = [text] if self._find_in_text is None else self._find_in_text.split(text)
        return [self._in_text[part] if index % 2 else part for index, part in enumerate(parts) if part]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character; of an added token, its content's."""
        if token_id in self._added:
            return self._added[token_id].content.encode()
        text = self._text.id_to_token(token_id) or ""
        if set(text) <= _BYTES.keys():
            return bytes(_BYTES[letter] for letter in text)
        return self._text.decode([token_id], skip_special_tokens=False).encode()

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids. Tokens that are "special" are dropped, but for those of tool calls."""
        pieces: list[str] = []
        run: list[int] = []
        for token_id in token_ids:
            added = self._added.get(token_id)
            if added is None:
                run.append(token_id)
                continue
            pieces.append(self._text.decode(run, skip_special_tokens=False))
            pieces.append(added.content if added.is_visible else "")
            run = []
        pieces.append(self._text.decode(run, skip_special_tokens=False))
        return "".join(pieces)


class TextStream:
    """Turns token ids that come one by one into pieces of text, never splitting a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < 8:  # a character is at most 4 bytes, so at most 4 tokens
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """What is left at the end, an unfinished character as U+FFFD."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text

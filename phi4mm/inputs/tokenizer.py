"""Text to token ids and back, with text and control tokens kept apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from phi4mm.errors import CheckpointError, PromptError

# Control tokens that are part of a reply's text; all others are dropped when decoding.
_VISIBLE = ("<|tool_call|>", "<|/tool_call|>")


class Tokenizer:
    """A byte-level BPE tokenizer whose control tokens are got by name only, never from text.

    Args:
        file: a ``tokenizer.json`` (Hugging Face tokenizers); its added tokens are the control tokens.

    Attributes:
        file: as given.

    Raises:
        CheckpointError: the file is missing or not a tokenizer.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            added = description.pop("added_tokens", None) or []
            self._control = {token["content"]: int(token["id"]) for token in added}
            # Without its added tokens the tokenizer cannot find a control token in text.
            self._text = _Tokenizer.from_str(json.dumps({**description, "added_tokens": []}))
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror}); expected a tokenizer.json") from error
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CheckpointError(f"{file}: not a tokenizer.json ({error}); download the checkpoint again") from error
        self._control_names = {token_id: name for name, token_id in self._control.items()}

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max([self._text.get_vocab_size(with_added_tokens=False) - 1, *self._control_names]) + 1

    @cached_property
    def longest_token(self) -> int:
        """The most characters that one token stands for."""
        return max(map(len, self._text.get_vocab(with_added_tokens=False)), default=1)

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
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds {text[error.start]!r} at position {error.start}, which is half of a character "
                "(a lone surrogate); remove it or decode the text as UTF-8"
            ) from error
        return list(self._text.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of token ids. Control tokens are dropped, but for those of tool calls."""
        pieces: list[str] = []
        run: list[int] = []
        for token_id in token_ids:
            name = self._control_names.get(token_id)
            if name is None:
                run.append(token_id)
                continue
            pieces.append(self._text.decode(run, skip_special_tokens=False))
            pieces.append(name if name in _VISIBLE else "")
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

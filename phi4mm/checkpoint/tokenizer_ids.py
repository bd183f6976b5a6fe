"""The ids of a ``tokenizer.json``, compared with the model's vocabulary before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from phi4mm.checkpoint.schema import Section, TokenId, check_token_ids, checked
from phi4mm.checkpoint.source import read_json


class _AddedToken(Section):
    id: TokenId
    content: Annotated[str, Field(min_length=1)]


class _Model(Section):
    vocab: dict[str, TokenId] | list[Any] | None = None  # of a Unigram model a list, in the order of the ids


class _TokenizerFile(Section):
    added_tokens: list[_AddedToken] | None = None
    model: _Model | None = None


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """Refuse a tokenizer with ids that the model's embedding does not have.

    Raises:
        CheckpointError: naming a token beyond the vocabulary, or the file is no tokenizer.
    """
    file = checked(_TokenizerFile, read_json(path), str(path))
    ids = [(f"the id of {token.content!r:.60}", token.id) for token in file.added_tokens or ()]
    vocab = file.model.vocab if file.model else None
    if isinstance(vocab, list) and vocab:
        ids.append(("the last id", len(vocab) - 1))
    elif isinstance(vocab, dict) and vocab:
        token = max(vocab, key=vocab.__getitem__)
        ids.append((f"the id of {token!r:.60}", vocab[token]))
    check_token_ids(str(path), ids, vocab_size)

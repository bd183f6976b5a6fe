"""One row of the engine, from its arrival to its end. It knows tokens, media and positions, nothing of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from phi4mm.engine.constraint import Constraint
from phi4mm.engine.prefix_cache import Entry, Key, Root, chain
from phi4mm.engine.row_sampler import RowSampler
from phi4mm.engine.sampler import Choice
from phi4mm.model.media import MediaItem
from phi4mm.types import Route, SamplingParams


@dataclass(frozen=True)
class Prompt:
    """A row to be continued.

    Attributes:
        token_ids: of the prompt, those of media included.
        route: its adapters and audio projector.
        sampling: how tokens are chosen and when the row ends.
        stop_token_ids: tokens that end the row, those of the checkpoint included.
        media: in the order of their tokens.
        choice: which of the replies to one request it is, counted from 0.
        constraint: which tokens it may have.
        released: called with the number of bytes of features that were dropped, once a medium is encoded.
    """

    token_ids: Sequence[int]
    route: Route
    sampling: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    media: tuple[MediaItem, ...] = ()
    choice: int = 0
    constraint: Constraint | None = None
    released: Callable[[int], None] | None = None

    def drop(self) -> None:
        """It will not be run: its features are dropped."""
        if self.released is not None:
            self.released(sum(item.nbytes for item in self.media))


class Group:
    """Rows of one call, of which at most ``limit`` are run at a time; ``None``: any number."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.num_running = 0

    @property
    def full(self) -> bool:
        return self.limit is not None and self.num_running >= self.limit


class Sink(Protocol):
    """Receives the tokens of a row, in the engine's thread. An exception that it raises ends the row."""

    def admitted(self) -> None:
        """The row has a place in the KV cache; called again where it lost its place meanwhile."""
        ...

    def push(self, choice: Choice, finish_reason: str | None, num_cached: int) -> bool:
        """The row's next token, why it ended, if it did, and how many tokens of its prompt were in the cache; returns
        whether the row need not go on."""
        ...

    def fail(self, error: Exception) -> None:
        """The row ended without a result."""
        ...


@dataclass(eq=False)
class MediumState:
    """A medium of a row: its features until they are encoded, then its embeddings [tokens, hidden]."""

    item: MediaItem | None
    digest: bytes
    start: int
    num_tokens: int
    embeddings: Tensor | None = None

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(eq=False)
class Row:
    """One row.

    Attributes:
        index: in order of arrival.
        token_ids: prompt and generated tokens.
        keys: identify each token in the prefix cache.
        long: whether it takes the long rope factors.
        num_new: how many tokens were generated.
        num_cached: tokens of the prompt that were not computed again.
        entry: its place in the KV cache; ``entry.num_tokens`` of its tokens are computed.
        decoding: whether its newest token alone is to be computed.
        passed_over: how many rows that came later were admitted before it.
    """

    index: int
    prompt: Prompt
    sink: Sink
    group: Group
    sampler: RowSampler
    media: list[MediumState]
    token_ids: list[int]
    keys: list[Key]
    long: bool = False
    num_new: int = 0
    num_cached: int = 0
    entry: Entry | None = None
    decoding: bool = False
    passed_over: int = 0
    _hashes: list[int] = field(default_factory=list)

    @property
    def root(self) -> Root:
        return (self.prompt.route.adapters, self.prompt.route.audio_projector, self.long)

    @property
    def hashes(self) -> list[int]:
        """Of the row's whole blocks so far."""
        return chain(self.root, self.keys, self._hashes)

    @property
    def num_left(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.token_ids) - (self.entry.num_tokens if self.entry else 0)

    def turn_long(self) -> None:
        """Take the long rope factors: what was computed with the short ones is of no use."""
        self.long, self.decoding = True, False
        self._hashes.clear()

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.keys.append(token_id)
        self.num_new += 1
        self.sampler.push(token_id)


def make_row(index: int, prompt: Prompt, sink: Sink, group: Group, *, vocab_size: int, long: bool) -> Row:
    """A row that has not begun.

    Raises:
        Phi4MMError: its sampling cannot be carried out with this vocabulary.
    """
    keys = list(prompt.token_ids)
    media = []
    for item in prompt.media:
        # Larger than any token id, and another number for each place in each medium.
        number = int.from_bytes(item.digest, "big") + 1 << 64
        keys[item.start : item.start + item.num_tokens] = range(number, number + item.num_tokens)
        media.append(MediumState(item, item.digest, item.start, item.num_tokens))
    sampler = RowSampler(
        prompt.sampling,
        prompt.token_ids,
        vocab_size=vocab_size,
        choice=prompt.choice,
        constraint=prompt.constraint,
    )
    prompt = replace(prompt, media=())  # or the features would live as long as the row
    return Row(index, prompt, sink, group, sampler, media, list(prompt.token_ids), keys, long=long)

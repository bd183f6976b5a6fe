"""A model for the engine's tests: its next token depends on every token, medium, adapter and rope choice before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import torch

from phi4mm.engine.core import Core
from phi4mm.engine.kv_cache import Extent
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.row import Prompt
from phi4mm.engine.runner import Chunk, Token
from phi4mm.engine.sampler import Choice
from phi4mm.model.media import MediaItem
from phi4mm.types import Route, SamplingParams

VOCABULARY = 11
STOP = 0
MEDIUM = 10  # the token that stands for one of a medium
FRAMES = 20  # of a medium encoded at once


def next_token(values: Sequence[float], adapters: tuple[str, ...], long: bool) -> int:
    """What the mock model says after these tokens and values of media."""
    state = 17 + 31 * long + 7 * len("".join(adapters))
    for value in values:
        state = (state * 1103515245 + int(value) + 12345) % 2**31
    value = (state >> 8) % (12 * (VOCABULARY - 1) + 1)  # rows stop themselves after some 120 tokens
    return STOP if value == 0 else 1 + value % (VOCABULARY - 1)


def alone(prompt: Prompt, original_max_positions: int, max_positions: int) -> list[int]:
    """The row's continuation, without engine or cache."""
    values: list[float] = list(prompt.token_ids)
    for item in prompt.media:
        values[item.start : item.start + item.num_tokens] = embedded(item).tolist()
    new: list[int] = []
    while len(new) < prompt.sampling.max_new_tokens and len(values) < max_positions and STOP not in new:
        new.append(next_token(values, prompt.route.adapters, len(values) > original_max_positions))
        values.append(new[-1])
    return new


def medium(number: int, num_tokens: int, start: int) -> MediaItem:
    """Medium ``number``: its content is that number."""
    features = torch.full((3 * num_tokens, 1), float(number))
    return MediaItem("audio", features, "speech", num_tokens, start, (1000 * number + num_tokens).to_bytes(16, "big"))


def embedded(item: MediaItem) -> torch.Tensor:
    """What the mock tower makes of a medium [tokens]."""
    assert isinstance(item.features, torch.Tensor)
    return item.features[::3, 0] * 1000 + torch.arange(item.num_tokens)


def make_prompt(
    token_ids: Sequence[int],
    adapters: tuple[str, ...] = (),
    max_new_tokens: int = 8,
    media: tuple[MediaItem, ...] = (),
    released: Callable[[int], None] | None = None,
) -> Prompt:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    return Prompt(token_ids, Route(adapters), sampling, frozenset({STOP}), media, released=released)


class MockRunner:
    """Keeps tokens where the model keeps keys and values, and refuses what the model would get wrong.

    Attributes:
        fault: called before each call with what it is; may raise.
    """

    def __init__(
        self,
        num_tokens: int,
        *,
        original_max_positions: int = 10**6,
        max_positions: int = 10**6,
        shares_prefixes: bool = True,
    ) -> None:
        self.num_tokens = num_tokens
        self.vocab_size = VOCABULARY
        self.shares_prefixes = shares_prefixes
        self.original_max_positions = original_max_positions
        self.max_positions = max_positions
        self.places: list[tuple[float, bool, tuple[str, ...]] | None] = [None] * num_tokens
        self.prefilled: list[int] = []
        self.decoded: list[int] = []
        self.fault: Callable[[str], None] = lambda kind: None

    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        self.fault("prefill")
        assert len({chunk.extent for chunk in chunks}) == len(chunks)
        assert [chunk.adapters for chunk in chunks] == sorted(chunk.adapters for chunk in chunks)
        self.prefilled.append(sum(len(chunk.token_ids) for chunk in chunks))
        logits = []
        for chunk in chunks:
            values: list[float] = list(chunk.token_ids)
            for place, embeddings in chunk.media:
                assert all(value == MEDIUM for value in values[place : place + len(embeddings)])
                values[place : place + len(embeddings)] = embeddings[:, 0].tolist()
            row = self._write(chunk.extent, chunk.start, values, chunk.adapters, chunk.long)
            if chunk.final:
                logits.append(row)
        return torch.stack(logits) if logits else torch.empty(0, VOCABULARY)

    def decode(self, tokens: Sequence[Token]) -> torch.Tensor:
        self.fault("decode")
        assert len({token.extent for token in tokens}) == len(tokens)
        assert [token.order for token in tokens] == sorted(token.order for token in tokens)
        self.decoded.append(len(tokens))
        return torch.stack(
            [
                self._write(token.extent, token.position, [token.token_id], token.adapters, token.long)
                for token in tokens
            ]
        )

    def copy(self, source: Extent, target: Extent, num_tokens: int) -> None:
        self.fault("copy")
        assert num_tokens <= min(source.capacity, target.capacity)
        self.places[target.start : target.start + num_tokens] = self.places[source.start : source.start + num_tokens]

    def _write(
        self, extent: Extent, start: int, values: Sequence[float], adapters: tuple[str, ...], long: bool
    ) -> torch.Tensor:
        assert values
        assert start + len(values) <= extent.capacity
        first = extent.start + start
        self.places[first : first + len(values)] = [(value, long, adapters) for value in values]
        kept = self.places[extent.start : first + len(values)]
        assert all(place is not None and place[1:] == (long, adapters) for place in kept), "keys of another row"
        logits = torch.zeros(VOCABULARY)
        logits[next_token([place[0] for place in kept if place is not None], adapters, long)] = 1.0
        return logits


class MockEncoder:
    """Encodes up to ``FRAMES`` frames at once.

    Attributes:
        fault: called before each call; may raise.
    """

    def __init__(self) -> None:
        self.encoded: list[int] = []  # the media that were encoded, by their numbers
        self.fault: Callable[[str], None] = lambda kind: None

    def next_group(self, items: Sequence[MediaItem]) -> list[int]:
        return list(range(max(1, min(len(items), FRAMES // items[0].cost))))

    def encode(self, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        self.fault("encode")
        self.encoded += [int.from_bytes(item.digest, "big") // 1000 for item in items]
        return [embedded(item)[:, None] for item in items]

    def is_long(self, item: MediaItem) -> bool:
        return item.cost > FRAMES

    def encode_in_parts(self, item: MediaItem) -> Iterator[torch.Tensor]:
        self.encoded.append(int.from_bytes(item.digest, "big") // 1000)
        for part in embedded(item)[:, None].split(5):
            self.fault("encode")
            yield part


@dataclass
class Collector:
    """A sink that keeps what it is told, and asks for the row's end after ``stop_after`` tokens."""

    stop_after: int | None = None
    tokens: list[int] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None
    num_cached: int = 0

    def admitted(self) -> None:
        return

    def push(self, choice: Choice, finish_reason: str | None, num_cached: int) -> bool:
        assert self.reason is None
        assert self.error is None
        self.tokens.append(choice.token_id)
        self.reason = finish_reason
        self.num_cached = num_cached
        return self.stop_after is not None and len(self.tokens) >= self.stop_after

    def fail(self, error: Exception) -> None:
        assert self.error is None
        self.error = error

    @property
    def ended(self) -> bool:
        return self.reason is not None or self.error is not None


class Later(Executor):
    """Runs what is submitted when its result is asked for, or once it was asked ``polls`` times whether it is done: a
    thread beside the engine's, whose timing a test determines."""

    def __init__(self, polls: int) -> None:
        self.polls = polls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return _LaterFuture(lambda: fn(*args, **kwargs), self.polls)


class _LaterFuture(Future[Any]):
    def __init__(self, function: Callable[[], Any], polls: int) -> None:
        super().__init__()
        self.function: Callable[[], Any] | None = function
        self.polls = polls

    def done(self) -> bool:
        self.polls -= 1
        if self.polls <= 0:
            self._run()
        return super().done()

    def result(self, timeout: float | None = None) -> Any:
        self._run()
        return super().result(timeout)

    def _run(self) -> None:
        function, self.function = self.function, None
        if function is not None:
            try:
                self.set_result(function())
            except Exception as error:
                self.set_exception(error)


def make_core(
    num_tokens: int = 1 << 14,
    original_max_positions: int = 10**6,
    max_positions: int = 10**6,
    shares_prefixes: bool = True,
    executor: Executor | None = None,
    **options: int,
) -> tuple[Core, MockRunner, MockEncoder]:
    runner = MockRunner(
        num_tokens,
        original_max_positions=original_max_positions,
        max_positions=max_positions,
        shares_prefixes=shares_prefixes,
    )
    encoder = MockEncoder()
    return Core(runner, encoder, EngineOptions(**options), executor), runner, encoder  # type: ignore[arg-type]

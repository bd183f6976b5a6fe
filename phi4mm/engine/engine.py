"""Continuous batching. The engine knows tokens and positions, nothing of text or media."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from phi4mm.engine.runner import ModelRunner, Piece, Token
from phi4mm.engine.sampler import Choice, Sampling, next_tokens
from phi4mm.model.batch import Batch
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.model.router import Route

PREFILL_TOKENS = 512  # of prompts run between two decoding steps: enough to keep the arithmetic busy


class Runner(Protocol):
    """What the engine needs of a model with a cache of ``num_slots`` slots."""

    num_slots: int
    max_positions: int
    original_max_positions: int

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens] -> [tokens, hidden]."""
        ...

    def prefill(self, pieces: Sequence[Piece]) -> Tensor:
        """Run pieces of prompts; the logits after each final one [final pieces, vocabulary]."""
        ...

    def decode(self, tokens: Sequence[Token]) -> Tensor:
        """Run one token of each of some rows; the logits after each [rows, vocabulary]."""
        ...

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` of one slot to another."""
        ...


MakeRunner = Callable[[Phi4MMModel, int], Runner]  # of a model and a number of slots


@dataclass(frozen=True)
class Prompt:
    """A row to be continued.

    Attributes:
        token_ids: of the prompt.
        embeddings: [tokens, hidden], with media in their places.
        route: its adapter.
        sampling: how to choose tokens and when to end.
    """

    token_ids: Sequence[int]
    embeddings: Tensor
    route: Route
    sampling: Sampling


@dataclass(frozen=True)
class Step:
    """One generated token: the row, the token, its log-probability, and why the row ended, if it did."""

    row: int
    token_id: int
    log_probability: float
    finish_reason: str | None


@dataclass(eq=False)
class RowState:
    """One row from its arrival to its end.

    Attributes:
        index: the row's number, in order of arrival.
        prompt: the prompt's embeddings [tokens, hidden], kept while the row may need a second prefill.
        token_ids: prompt and generated tokens.
        pending: embeddings to be prefilled, from position 0 on; ``None`` while the row is decoded.
        position: tokens of the row that are in the cache.
        long: whether it takes the long rope factors.
        num_new: how many tokens were generated.
    """

    index: int
    prompt: Tensor | None
    token_ids: list[int]
    route: Route
    sampling: Sampling
    pending: Tensor | None
    long: bool
    position: int = 0
    num_new: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)


class Engine:
    """Decodes rows that come and go. Each row's tokens are those that it has alone.

    Call ``submit`` at any time and ``step`` while ``busy``. A step runs one token of every row whose prompt is done,
    takes waiting rows into free slots, and runs at most ``prefill_tokens`` tokens of prompts, oldest row first; so a
    long prompt holds up the others by one piece of it at a time, and no row waits for another to end.

    Args:
        runner: the model and its cache.
        prefill_tokens: the most prompt tokens run in a step.
    """

    def __init__(self, runner: Runner, *, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self._runner = runner
        self._prefill_tokens = prefill_tokens
        self._slots: list[RowState | None] = [None] * runner.num_slots
        self._waiting: deque[RowState] = deque()
        self._num_submitted = 0

    @property
    def busy(self) -> bool:
        """Whether any row is waiting or being run."""
        return bool(self._waiting) or any(self._slots)

    @property
    def num_free(self) -> int:
        """Slots that no row has or waits for."""
        return max(self._slots.count(None) - len(self._waiting), 0)

    def submit(self, prompt: Prompt) -> int:
        """Queue a row and return its number, which its steps carry."""
        length = len(prompt.token_ids)
        original = self._runner.original_max_positions
        may_cross = length <= original < length + prompt.sampling.max_new_tokens
        row = RowState(
            index=self._num_submitted,
            prompt=prompt.embeddings if may_cross else None,
            token_ids=list(prompt.token_ids),
            route=prompt.route,
            sampling=prompt.sampling,
            pending=prompt.embeddings,
            long=length > original,
            generator=prompt.sampling.generator(),
        )
        self._num_submitted += 1
        self._waiting.append(row)
        return row.index

    def cancel(self, row: int) -> None:
        """End a row from outside; its slot is free at once. One that has ended, or never was, is passed over."""
        self._waiting = deque(state for state in self._waiting if state.index != row)
        self._slots = [None if state is not None and state.index == row else state for state in self._slots]

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Go on by at most one token a row."""
        decoded = self._decode()
        return decoded + self._prefill(without={step.row for step in decoded})

    def _running(self) -> list[tuple[int, RowState]]:
        """The slots and rows that are decoded."""
        return [(slot, state) for slot, state in enumerate(self._slots) if state and state.pending is None]

    def _decode(self) -> list[Step]:
        self._close_gaps()
        running = self._running()
        if not running:
            return []
        logits = self._runner.decode(
            [Token(slot, state.token_ids[-1], state.position, state.route, state.long) for slot, state in running]
        )
        for _, state in running:
            state.position += 1
        return self._advance([state for _, state in running], logits)

    def _close_gaps(self) -> None:
        """Move the last rows into free slots, so that those that are decoded lie in the first ones."""
        while (running := self._running()) and None in self._slots[: running[-1][0]]:
            (source, state), target = running[-1], self._slots.index(None)
            self._runner.move(source, target, state.position)
            self._slots[target], self._slots[source] = state, None

    def _prefill(self, without: set[int]) -> list[Step]:
        room = self._prefill_tokens
        pieces: list[Piece] = []
        finished: list[RowState] = []
        for slot, state in self._unfinished(without):
            assert state.pending is not None
            start, end = state.position, min(state.position + room, len(state.pending))
            final = end == len(state.pending)
            pieces.append(Piece(slot, start, state.pending[start:end], state.route, state.long, final))
            state.position = end
            room -= end - start
            if final:
                state.pending = None
                finished.append(state)
            if not room:
                break
        if not pieces:
            return []
        logits = self._runner.prefill(pieces)
        return self._advance(finished, logits) if finished else []

    def _unfinished(self, without: set[int]) -> Iterator[tuple[int, RowState]]:
        """The slots and rows whose prompts are to be run, oldest row first. A waiting row is given a slot when it is
        its turn: until then the slot is free for a row that is decoded."""
        begun = [(slot, state) for slot, state in enumerate(self._slots) if state and state.pending is not None]
        for slot, state in sorted(begun, key=lambda pair: pair[1].index):
            if state.index not in without:
                yield slot, state
        while self._waiting and None in self._slots:
            slot, state = self._slots.index(None), self._waiting.popleft()
            self._slots[slot] = state
            yield slot, state

    def _advance(self, states: Sequence[RowState], logits: Tensor) -> list[Step]:
        """Choose each row's next token from its logits, and end or turn the rows that it takes over a limit."""
        chosen = next_tokens(
            logits,
            [state.token_ids for state in states],
            [state.sampling for state in states],
            [state.generator for state in states],
        )
        return [self._push(state, choice) for state, choice in zip(states, chosen, strict=True)]

    def _push(self, state: RowState, choice: Choice) -> Step:
        token_id = choice.token_id
        state.token_ids.append(token_id)
        state.num_new += 1
        length = len(state.token_ids)
        finish_reason = None
        if token_id in state.sampling.stop_token_ids:
            finish_reason = "stop"
        elif state.num_new >= state.sampling.max_new_tokens or length >= self._runner.max_positions:
            finish_reason = "length"
        if finish_reason is not None:
            self.cancel(state.index)
        elif length > self._runner.original_max_positions and not state.long:
            self._turn_long(state)
        return Step(state.index, token_id, choice.log_probability, finish_reason)

    def _turn_long(self, state: RowState) -> None:
        """With the long factors every key of the row changes: run it again from its start, and only this row."""
        assert state.prompt is not None
        new = self._runner.embed(state.token_ids[-state.num_new :])
        state.pending = torch.cat((state.prompt, new))
        state.prompt, state.position, state.long = None, 0, True


class Generation:
    """The decoding of one batch: iterate it for a ``Step`` per generated token, in the order in which they come.

    Args:
        model: in evaluation mode.
        batch: the rows.
        samplings: one per row.
        make_runner: of the model and a number of slots.
    """

    def __init__(
        self,
        model: Phi4MMModel,
        batch: Batch,
        samplings: Sequence[Sampling],
        *,
        make_runner: MakeRunner = ModelRunner,
    ) -> None:
        self._model = model
        self._batch = batch
        self._samplings = tuple(samplings)
        self._engine = Engine(make_runner(model, len(batch.routes)))

    def stop(self, row: int) -> None:
        """End a row from outside (a stop string was found); the others go on."""
        self._engine.cancel(row)

    def __iter__(self) -> Iterator[Step]:
        for prompt in prompts(self._model, self._batch, self._samplings):
            self._engine.submit(prompt)
        while self._engine.busy:
            yield from self._engine.step()


@torch.inference_mode()
def prompts(model: Phi4MMModel, batch: Batch, samplings: Sequence[Sampling]) -> list[Prompt]:
    """The rows of a batch as the engine takes them: the media are encoded here."""
    embeddings = model.embed(batch.to(model.device))
    return [
        Prompt(
            token_ids=batch.token_ids[index, :length].tolist(),
            # A copy, so that a row does not hold the whole batch in memory.
            embeddings=embeddings[index, :length].clone(),
            route=batch.routes[index],
            sampling=sampling,
        )
        for index, (length, sampling) in enumerate(zip(batch.lengths.tolist(), samplings, strict=True))
    ]

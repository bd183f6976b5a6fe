"""The engine without its thread: rows come and go, and each step computes a bounded piece of work for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import torch
from torch import Tensor

from phi4mm.engine.encoding import Embeddings, Encoded, Encoder, Encoding, Inline, is_out_of_memory
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.row import Group, MediumState, Prompt, Row, Sink, make_row
from phi4mm.engine.runner import Chunk, Runner, Token
from phi4mm.engine.sampler import Choice, choose
from phi4mm.engine.scheduler import Scheduler
from phi4mm.errors import Phi4MMError, PromptError
from phi4mm.model.media import MediaItem

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ENOUGH = 0.75  # of the rows of a batch, that need not wait for the others
_ROWS_A_TOKEN = 16  # prompt tokens computed between two decode steps for each row that is decoded, at least


class EngineError(Phi4MMError):
    """The computation of a row failed; ``__cause__`` is the reason."""


class Core:
    """Runs rows that come and go. Each row's tokens are those that it has alone.

    Call ``submit`` at any time and ``step`` while ``busy``. A step decodes one token of every row whose prompt is done,
    then encodes a bounded group of media, then admits waiting rows and computes a bounded number of prompt tokens. So
    neither a long prompt nor a tower holds up the rows that are decoded by more than one piece of it at a time.

    An exception in a step ends the rows that took part in the call which raised it; where memory ran out, the call is
    made again with half the rows.

    Args:
        runner: the model and its KV cache.
        encoder: the towers.
        options: the bounds.
        executor: where media are encoded, beside the decoder; ``None``: between its steps.
    """

    def __init__(
        self, runner: Runner, encoder: Encoder, options: EngineOptions, executor: Executor | None = None
    ) -> None:
        self._runner = runner
        self._encoder = encoder
        self._options = options
        self._num_submitted = 0
        self._most_together = options.max_rows  # rows in one decode call: fewer once memory has run out
        self._executor = executor or Inline()
        self._encoding = Encoding(encoder, self._executor, self._encoded)
        self.scheduler = Scheduler(options, runner.num_tokens, runner.copy, shares_prefixes=runner.shares_prefixes)
        self.embeddings = Embeddings(options.encoder_bytes)

    @property
    def busy(self) -> bool:
        """Whether any row is waiting or being run."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def max_rows(self) -> int:
        """The most rows that are decoded together."""
        return self._options.max_rows

    @property
    def enough_waiting(self) -> bool:
        """Whether there are rows for all places, or one that is not part of a batch and so need not wait for others."""
        waiting = self.scheduler.waiting
        return len(waiting) >= self._options.max_rows or any(row.group.limit is None for row in waiting)

    @property
    def most_tokens(self) -> int:
        """Tokens that a row may have, generated ones included."""
        return min(self._runner.max_positions, self.scheduler.arena.num_tokens)

    def submit(self, prompt: Prompt, sink: Sink, group: Group | None = None) -> Row:
        """Queue a row.

        Raises:
            PromptError: it is longer than the KV cache.
            Phi4MMError: its sampling cannot be carried out with this vocabulary.
        """
        length = len(prompt.token_ids)
        if length >= self.most_tokens:
            raise PromptError(
                f"the prompt is {length} tokens long, and the KV cache holds {self.most_tokens}: shorten it, or load "
                "the model with a larger cache_tokens"
            )
        row = make_row(
            self._num_submitted,
            prompt,
            sink,
            group or Group(),
            vocab_size=self._runner.vocab_size,
            long=length > self._runner.original_max_positions,
        )
        self._num_submitted += 1
        self.scheduler.add(row)
        return row

    def cancel(self, row: Row) -> None:
        """End a row from outside. One that has ended is passed over."""
        self.scheduler.remove(row)
        self._release_media(row)

    @property
    def num_rows(self) -> int:
        """Rows that wait or run."""
        return len(self.scheduler.running) + len(self.scheduler.waiting)

    def drop_caches(self) -> None:
        """Forget the kept prefixes and embeddings."""
        self.scheduler.drop_prefixes()
        self.embeddings.clear()

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """End every row with an error of its own."""
        for row in self.scheduler.rows:
            self._fail(row, make_error())

    def close(self, make_error: Callable[[], Exception]) -> None:
        """End every row with an error of its own, and the towers' thread."""
        self.fail_all(make_error)
        self._executor.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def step(self) -> None:
        """Go on by at most one token of each row that is decoded, and a bounded piece of each other kind of work."""
        patient = self._is_patient()
        if not patient:
            self._decode()
        prefilling = any(not row.decoding for row in self.scheduler.running)
        self._encode(wait=patient and not prefilling)
        for row, error in self.scheduler.admit():
            self._fail(row, _wrapped(error))
        self._prefill()

    @torch.inference_mode()
    def embed_media(self, items: Sequence[MediaItem]) -> list[Tensor]:
        """The embeddings of media, computed here unless they are kept from before."""
        values = []
        for item in items:
            kept = self.embeddings.get(item.digest)
            if kept is None:
                [kept] = self._encoder.encode([item])
                self.embeddings.put(item.digest, kept)
            values.append(kept)
        return values

    def _decode(self) -> None:
        rows = [row for row in self.scheduler.running if row.decoding]
        for row in rows:
            if row.entry is None:  # another one that grew made it wait
                continue
            try:
                self.scheduler.grow(row)
            except Exception as error:  # copying failed
                self._fail(row, _wrapped(error))
        rows = [row for row in rows if row.entry is not None]
        if not rows:
            return
        tokens = {row: _token(row) for row in rows}
        rows.sort(key=lambda row: tokens[row].order)
        for start in range(0, len(rows), self._most_together):
            part = rows[start : start + self._most_together]
            for row, choice in self._attempt(part, lambda some: self._decoded(some, tokens)):
                if isinstance(choice, Exception):
                    self._fail(row, _of_processor(choice))
                else:
                    self.scheduler.computed(row, 1)
                    self._advance(row, choice)

    def _decoded(self, rows: Sequence[Row], tokens: dict[Row, Token]) -> list[Choice | Exception]:
        try:
            logits = self._runner.decode([tokens[row] for row in rows])
        except Exception as error:
            if is_out_of_memory(error):
                self._most_together = max(len(rows) // 2, 1)
            raise
        return choose(logits, [row.sampler for row in rows])

    def _prefill(self) -> None:
        decoded = sum(row.decoding for row in self.scheduler.running)
        budget = self._options.prefill_tokens * (1 if decoded else 4)
        planned = self.scheduler.chunks(max(budget, _ROWS_A_TOKEN * decoded))
        if not planned:
            return
        # In the order of their adapters, the rows of one lie side by side.
        counts = dict(sorted(planned, key=lambda item: (item[0].prompt.route.adapters, item[0].index)))
        for row, result in self._attempt(list(counts), lambda some: self._prefilled(some, counts)):
            if isinstance(result, Exception):
                self._fail(row, _of_processor(result))
                continue
            self.scheduler.computed(row, counts[row])
            if result is not None:
                self._release_media(row, all_of_it=False)
                row.decoding = True
                self._advance(row, result)

    def _prefilled(self, rows: Sequence[Row], counts: dict[Row, int]) -> list[Choice | Exception | None]:
        """The next token of each row whose last token is computed now; ``None`` for the others."""
        chunks = [_chunk(row, counts[row]) for row in rows]
        logits = self._runner.prefill(chunks)
        ended = [row for row, chunk in zip(rows, chunks, strict=True) if chunk.final]
        choices = iter(choose(logits, [row.sampler for row in ended]) if ended else [])
        return [next(choices) if chunk.final else None for chunk in chunks]

    def _is_patient(self) -> bool:
        """Whether the few rows that are decoded had better wait for more of their calls, which the towers are just
        encoding: a step takes about as long for few rows as for many. Rows that are not part of a batch never wait."""
        rows = self.scheduler.running
        if not (self._encoding.busy and rows):
            return False
        limits = [row.group.limit or 1 for row in rows]
        decoding = sum(row.decoding for row in rows)
        return min(limits) > 1 and decoding < _ENOUGH * min(max(limits), self._options.max_rows)

    def _encode(self, *, wait: bool) -> None:
        """Encode a group of the media that rows wait for, those of the same content once."""
        needed: dict[bytes, MediaItem] = {}
        for row, medium in self.scheduler.media_to_encode():
            kept = self.embeddings.get(medium.digest)
            if kept is not None:
                medium.embeddings = kept
                self._release_features(row, medium)
            elif medium.item is not None:
                needed.setdefault(medium.digest, medium.item)
        found = self._encoding.step(needed, wait=wait or not self.scheduler.running)
        for digest, result in found.items():
            if isinstance(result, Tensor):
                self.embeddings.put(digest, result)
        for row in self.scheduler.rows if found else ():
            for medium in row.media:
                if medium.digest not in found or medium.embeddings is not None:
                    continue
                result = found[medium.digest]
                if isinstance(result, Tensor):
                    medium.embeddings = result
                    self._release_features(row, medium)
                else:
                    self._fail(row, _wrapped(result))

    def _encoded(self, items: Sequence[MediaItem]) -> Encoded:
        return {item.digest: result for item, result in self._attempt(items, self._encoder.encode)}

    def _attempt(
        self, items: Sequence[_Item], call: Callable[[Sequence[_Item]], Sequence[_Result | Exception]]
    ) -> list[tuple[_Item, _Result | Exception]]:
        """Each item with what a call on all of them gives for it. Where memory runs out, kept embeddings are dropped
        and the call is made on halves; another exception is the result of every item in the call."""
        try:
            return list(zip(items, call(items), strict=True))
        except Exception as error:
            if not is_out_of_memory(error):
                return [(item, _wrapped(error)) for item in items]
        self._free_memory()
        if len(items) == 1:
            try:
                return list(zip(items, call(items), strict=True))
            except Exception as error:
                return [(items[0], _wrapped(error))]
        half = len(items) // 2
        return [pair for part in (items[:half], items[half:]) for pair in self._attempt(part, call)]

    def _free_memory(self) -> None:
        self.embeddings.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _advance(self, row: Row, choice: Choice) -> None:
        """Add a token to a row, and end the row or turn it long where it reaches a limit."""
        row.append(choice.token_id)
        finish_reason = None
        if choice.token_id in row.prompt.stop_token_ids:
            finish_reason = "stop"
        elif row.num_new >= row.prompt.sampling.max_new_tokens or len(row.token_ids) >= self.most_tokens:
            finish_reason = "length"
        try:
            stopped = row.sink.push(choice, finish_reason, row.num_cached)
        except Exception as error:
            self._fail(row, _wrapped(error))
            return
        if finish_reason is not None or stopped:
            self.scheduler.remove(row)
            self._release_media(row)
        elif len(row.token_ids) > self._runner.original_max_positions and not row.long:
            self.scheduler.turn_long(row)

    def _fail(self, row: Row, error: Exception) -> None:
        if self.scheduler.remove(row):
            self._release_media(row)
            row.sink.fail(error)

    def _release_media(self, row: Row, *, all_of_it: bool = True) -> None:
        """Drop what a row holds of its media. Embeddings are kept while the row may have to be computed again."""
        for medium in row.media:
            if all_of_it or medium.embeddings is not None:
                self._release_features(row, medium)
        if all_of_it:
            row.media = []

    def _release_features(self, row: Row, medium: MediumState) -> None:
        if medium.item is not None:
            nbytes, medium.item = medium.item.nbytes, None
            if row.prompt.released is not None:
                row.prompt.released(nbytes)


def _token(row: Row) -> Token:
    assert row.entry is not None
    return Token(row.entry.extent, row.token_ids[-1], row.entry.num_tokens, row.prompt.route.adapters, row.long)


def _chunk(row: Row, num_tokens: int) -> Chunk:
    """The next tokens of a row that is prefilled."""
    assert row.entry is not None
    start = row.entry.num_tokens
    end = start + num_tokens
    media = []
    for medium in row.media:
        first, last = max(medium.start, start), min(medium.end, end)
        if first < last:
            assert medium.embeddings is not None
            media.append((first - start, medium.embeddings[first - medium.start : last - medium.start]))
    return Chunk(
        extent=row.entry.extent,
        start=start,
        token_ids=row.token_ids[start:end],
        media=media,
        adapters=row.prompt.route.adapters,
        long=row.long,
        final=end == len(row.token_ids),
    )


def _of_processor(error: Exception) -> Phi4MMError:
    """An error of the project's kind of what a logits processor raised."""
    if isinstance(error, Phi4MMError):
        return error
    wrapped = PromptError(
        f"processors: one of them failed ({type(error).__name__}: {error}); its fault is in __cause__"
    )
    wrapped.__cause__ = error
    return wrapped


def _wrapped(error: BaseException) -> Phi4MMError:
    """An error of its own for each row."""
    if isinstance(error, EngineError) and error.__cause__ is not None:
        return _wrapped(error.__cause__)
    if isinstance(error, Phi4MMError):
        wrapped = type(error)(str(error))
    else:
        reason = " ".join(str(error).split())
        wrapped = EngineError(
            f"the computation failed ({type(error).__name__}: {reason:.300}); the other requests go on: try it again, "
            "with a shorter input where memory ran out"
        )
    wrapped.__cause__ = error
    return wrapped

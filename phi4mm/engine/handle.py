"""What a caller holds of a request: its text as it comes, its reply, and the means to cancel it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from phi4mm.engine.answer import Answer
from phi4mm.engine.sampler import Choice
from phi4mm.errors import PromptError
from phi4mm.types import Reply, Route, TokenLogprob, Usage

ENGINE_THREAD = "phi4mm-engine"

_NOT_READ = Reply("", (), Route(), "cancelled", 0.0, Usage(0, 0))  # of a request that was cancelled before it began


@dataclass(frozen=True)
class RowTimes:
    """When what happened to a row, by ``time.monotonic``.

    Attributes:
        queued: it was handed to the engine.
        admitted: it first got a place in the KV cache; ``None``: not yet.
        tokens: each of its tokens was there.
    """

    queued: float
    admitted: float | None = None
    tokens: tuple[float, ...] = ()


class Handle:
    """A request in the engine. It may be used from any thread and any event loop.

    ``result()`` waits for the reply, and ``await handle`` does so in an event loop. Iterating, with ``for`` or ``async
    for``, gives the pieces of its text as they are decoded, from the first one on; together they are the reply's text.

    Attributes:
        alternatives: the handles of the other replies, where ``SamplingParams.n`` asks for several.
    """

    def __init__(self, alternatives: tuple[Handle, ...] = ()) -> None:
        self.alternatives = alternatives
        self._answer: Answer | None = None
        self._pieces: list[str] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._future: Future[Reply] = Future()
        self._cancel: Callable[[], None] | None = None
        self._cancelled = False
        self._queued: float | None = None
        self._admitted: float | None = None
        self._token_times: list[float] = []

    @property
    def times(self) -> RowTimes | None:
        """When what happened to it until now; ``None`` before it is handed to the engine."""
        with self._changed:
            if self._queued is None:
                return None
            return RowTimes(self._queued, self._admitted, tuple(self._token_times))

    @property
    def done(self) -> bool:
        """Whether the reply, or an error, is there."""
        return self._future.done()

    def logprobs(self, start: int = 0) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the tokens from number ``start`` on that there are until now, if they are asked for."""
        with self._changed:
            return () if self._answer is None else self._answer.logprobs(start)

    def result(self, timeout: float | None = None) -> Reply:
        """The reply.

        Args:
            timeout: seconds to wait at most; ``None``: until it is there.

        Raises:
            Phi4MMError: the request is bad, its computation failed, or the model was closed.
            TimeoutError: it is not there yet; the request goes on.
        """
        _refuse_engine_thread()
        deadline = None if timeout is None else time.monotonic() + timeout
        reply = self._future.result(timeout)
        if not self.alternatives:
            return reply
        others = (handle.result(_left(deadline)) for handle in self.alternatives)
        return replace(reply, alternatives=tuple(others))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error that ``result`` would raise, or ``None``; waits for the end as it does."""
        _refuse_engine_thread()
        deadline = None if timeout is None else time.monotonic() + timeout
        errors = (handle._future.exception(_left(deadline)) for handle in (self, *self.alternatives))
        return next((error for error in errors if error is not None), None)

    def cancel(self) -> None:
        """End the request; its reply is what was decoded until now, with the finish reason "cancelled". Of one that
        has ended nothing changes."""
        for handle in self.alternatives:
            handle.cancel()
        with self._changed:
            if self._cancelled or self._future.done():
                return
            self._cancelled = True
            cancel, answer = self._cancel, self._answer
            if answer is not None and (piece := answer.cancel()):
                self._pieces.append(piece)
        if cancel is not None:
            cancel()
        self._finish(_NOT_READ if answer is None else answer.reply())

    def when_done(self, function: Callable[[], None]) -> None:
        """Call a function once the reply, or an error, is there: at once if it is, else in the engine's thread."""
        self._future.add_done_callback(lambda _: function())

    def __iter__(self) -> Iterator[str]:
        """The pieces of the text; raises what ``result`` raises."""
        _refuse_engine_thread()
        place = 0
        while True:
            with self._changed:
                while place >= len(self._pieces) and not self._future.done():
                    self._changed.wait()
                pieces = self._pieces[place:]
            place += len(pieces)
            yield from pieces
            if not pieces and self._future.done():
                self._future.result()
                return

    async def __aiter__(self) -> AsyncIterator[str]:
        """The pieces of the text, without blocking the event loop; raises what ``result`` raises."""
        loop = asyncio.get_running_loop()
        place = 0
        while True:
            arrived = asyncio.Event()

            def wake(arrived: asyncio.Event = arrived) -> None:
                try:
                    loop.call_soon_threadsafe(arrived.set)
                except RuntimeError:  # the loop was closed meanwhile: nobody waits
                    return

            with self._changed:
                pieces = self._pieces[place:]
                done = self._future.done()
                if not pieces and not done:
                    self._wakers.append(wake)
            if not pieces:
                if done:
                    self._future.result()
                    return
                await arrived.wait()
            place += len(pieces)
            if pieces:
                yield "".join(pieces)  # one for all that came while the loop was busy

    def __await__(self) -> Generator[None, None, Reply]:
        return self._awaited().__await__()

    async def _awaited(self) -> Reply:
        reply = await asyncio.shield(asyncio.wrap_future(self._future))
        if not self.alternatives:
            return reply
        return replace(reply, alternatives=tuple([await handle for handle in self.alternatives]))

    # What follows is called by the engine and by those who hand requests to it.

    def begin(self, answer: Answer, cancel: Callable[[], None]) -> bool:
        """The request is read and on its way to the engine; ``False``: it was cancelled meanwhile."""
        with self._changed:
            if not self._cancelled:
                self._answer, self._cancel, self._queued = answer, cancel, time.monotonic()
            return not self._cancelled

    def admitted(self) -> None:
        """See ``engine.row.Sink``."""
        if self._admitted is None:
            self._admitted = time.monotonic()

    def push(self, choice: Choice, finish_reason: str | None, num_cached: int) -> bool:
        """See ``engine.row.Sink``."""
        assert self._answer is not None
        with self._changed:
            if self._cancelled:
                return True
            self._token_times.append(time.monotonic())
            piece = self._answer.push(choice, finish_reason, num_cached)
            if piece:
                self._pieces.append(piece)
            finished = self._answer.finished
        if finished:
            self._finish(self._answer.reply())
        elif piece:
            self._wake()
        return finished

    def fail(self, error: Exception) -> None:
        """See ``engine.row.Sink``."""
        self._finish(error)

    def _finish(self, result: Reply | Exception) -> None:
        with self._changed:
            if self._future.done():
                return
            self._cancel = None  # it keeps the engine alive
            if isinstance(result, Reply):
                self._future.set_result(result)
            else:
                self._future.set_exception(result)
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            wake()


def _left(deadline: float | None) -> float | None:
    """Seconds until a deadline."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def _refuse_engine_thread() -> None:
    """In the engine's thread, as in a logits processor, nobody may wait for the engine."""
    if threading.current_thread().name == ENGINE_THREAD:
        raise PromptError("a logits processor must not wait for a reply: it runs in the engine's thread")

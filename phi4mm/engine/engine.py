"""The engine: one thread that runs the rows of all callers, one step after another."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from phi4mm.engine.core import Core, EngineError
from phi4mm.engine.encoding import Embeddings
from phi4mm.engine.handle import ENGINE_THREAD
from phi4mm.engine.row import Group, Prompt, Row, Sink
from phi4mm.errors import ClosedError

_Result = TypeVar("_Result")

_GATHER_SECONDS = 0.2  # an idle engine waits so long at most for rows that are being read


@dataclass(frozen=True)
class EngineStats:
    """What the engine did when its last step had ended.

    Attributes:
        running: rows that have a place in the KV cache.
        waiting: rows that wait for one.
        used_tokens: places of the KV cache that are in use, those of kept prefixes among them.
        cache_tokens: all of its places.
        running_adapters, waiting_adapters: of these rows.
    """

    running: int = 0
    waiting: int = 0
    used_tokens: int = 0
    cache_tokens: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()

    @classmethod
    def of(cls, core: Core) -> EngineStats:
        scheduler = core.scheduler
        return cls(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            used_tokens=scheduler.arena.num_used,
            cache_tokens=scheduler.arena.num_tokens,
            running_adapters=_adapters(scheduler.running),
            waiting_adapters=_adapters(scheduler.waiting),
        )


def _adapters(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.prompt.route.adapters))


@dataclass(eq=False)
class Ticket:
    """A row on its way to the engine, in it, or ended.

    Attributes:
        prompt: until the row is made.
        sink: receives its tokens, its end or its error.
        group: its call's.
    """

    prompt: Prompt | None
    sink: Sink
    group: Group | None = None
    row: Row | None = None
    cancelled: bool = False


class Engine:
    """Runs a ``Core`` in a thread of its own, which starts with the first row and ends with ``close``.

    Every method may be called from any thread.

    Args:
        make_core: of the number of threads that each operation may use; called in the thread.
        expecting: how many rows are being read and will come soon: an idle engine then waits a little, so that rows
            which come together are encoded and computed together.

    Attributes:
        stats: as of the last step.
    """

    def __init__(self, make_core: Callable[[int], Core], expecting: Callable[[], int] = lambda: 0) -> None:
        self._make_core = make_core
        self._expecting = expecting
        self._commands: deque[Callable[[Core], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._embeddings: Embeddings | None = None  # of the core, once it is made
        self._cause: BaseException | None = None  # why the core could not be made
        self._num_threads = 1
        self.stats = EngineStats()
        self._owner = os.getpid()

    def submit(self, ticket: Ticket) -> None:
        """Queue a row; its sink receives its tokens, its end or its error, in the engine's thread.

        Raises:
            ClosedError: the engine is closed.
        """

        def begin(core: Core) -> None:
            prompt, ticket.prompt = ticket.prompt, None
            assert prompt is not None
            if ticket.cancelled:
                prompt.drop()
                return
            try:
                ticket.row = core.submit(prompt, ticket.sink, ticket.group)
            except Exception as error:
                prompt.drop()
                ticket.sink.fail(error)

        def refused(error: ClosedError) -> None:
            ticket.sink.fail(error)

        self._send(begin, refused)

    def cancel(self, ticket: Ticket) -> None:
        """End a row; one that has ended is passed over."""
        ticket.cancelled = True

        def end(core: Core) -> None:
            if ticket.row is not None:
                core.cancel(ticket.row)

        try:
            self._send(end)
        except ClosedError:
            return

    def call(self, function: Callable[[Core], _Result]) -> _Result:
        """What a function of the core returns, which is called between two steps.

        Raises:
            ClosedError: the engine is closed.
            Exception: what the function raises.
        """
        future: Future[_Result] = Future()

        def run(core: Core) -> None:
            try:
                with torch.inference_mode():
                    future.set_result(function(core))
            except BaseException as error:
                future.set_exception(error)

        if threading.current_thread() is self._thread:
            raise RuntimeError("called from the engine's own thread, which would wait for itself")
        self._send(run, refused=future.set_exception)
        return future.result()

    def has_embeddings(self, digest: bytes) -> bool:
        """Whether the embeddings of a medium are kept now; they may be dropped at any time."""
        return self._embeddings is not None and digest in self._embeddings

    def close(self) -> None:
        """End the thread; every row that has not ended fails with a ``ClosedError``. Again: nothing."""
        if self.is_forked:  # the thread is in the other process
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def check_open(self) -> None:
        """Refuse to go on once it is closed, or in a process that was forked from the one in which it was made: there
        it has no thread, and its locks may be held for ever.

        Raises:
            ClosedError: it is.
        """
        if self.is_forked:
            raise ClosedError(
                "this model was loaded before the process was forked, and its threads are in the other one; load it in "
                'this one, or start processes by "spawn" (multiprocessing), or with phi4mm.Workers'
            )
        if self._closed:
            raise closed_error(self._cause)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a copy of the one in which the engine was made."""
        return os.getpid() != self._owner

    def _send(self, command: Callable[[Core], None], refused: Callable[[ClosedError], None] | None = None) -> None:
        self.check_open()
        with self._changed:
            if self._closed:
                raise closed_error(self._cause)
            if self._thread is None:
                self._num_threads = torch.get_num_threads()
                self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)
                self._thread.start()
            if refused is not None:
                command = _Refusable(command, refused)
            self._commands.append(command)
            self._changed.notify()

    def _run(self) -> None:
        try:
            core = self._make_core(self._num_threads)
        except BaseException as error:
            self._refuse_all(error)
            return
        self._embeddings = core.embeddings
        try:
            while self._next(core):
                try:
                    core.step()
                except BaseException as error:  # a fault of the engine itself: no row must wait for ever
                    core.fail_all(lambda error=error: _fault(error))  # type: ignore[misc]
                self.stats = EngineStats.of(core)
        finally:
            self._embeddings = None
            core.close(closed_error)
            self._refuse_all(None)

    def _next(self, core: Core) -> bool:
        """Carry out what was asked for, and wait where there is nothing to do; ``False`` where the engine is closed."""
        deadline: float | None = None
        while True:
            with self._changed:
                while not (self._commands or self._closed or core.busy):
                    self._changed.wait()
                if self._closed:
                    return False
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                command(core)
            if commands:
                self.stats = EngineStats.of(core)
            if not core.busy:
                continue
            if core.scheduler.running or core.enough_waiting or not self._expecting():
                return True
            deadline = deadline or time.monotonic() + _GATHER_SECONDS
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            with self._changed:
                if not (self._commands or self._closed):
                    self._changed.wait(left)

    def _refuse_all(self, error: BaseException | None) -> None:
        """Nothing that was asked for is left unanswered."""
        with self._changed:
            self._closed, self._cause = True, error
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            if isinstance(command, _Refusable):
                command.refused(closed_error(error))


class _Refusable:
    """A command, and what is called if it will not be carried out."""

    def __init__(self, command: Callable[[Core], None], refused: Callable[[ClosedError], None]) -> None:
        self.command = command
        self.refused = refused

    def __call__(self, core: Core) -> None:
        self.command(core)


def closed_error(cause: BaseException | None = None) -> ClosedError:
    """An error of its own for each caller."""
    error = ClosedError(
        "the model is closed; load it again to go on" if cause is None else f"the engine could not start: {cause}"
    )
    error.__cause__ = cause
    return error


def _fault(cause: BaseException) -> EngineError:
    error = EngineError(f"the engine failed ({type(cause).__name__}: {cause}); please report this")
    error.__cause__ = cause
    return error

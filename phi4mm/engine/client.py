"""From requests to handles: what every public call of ``Phi4MM`` is a client of."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from phi4mm.engine.answer import Answer
from phi4mm.engine.core import Core, EngineError
from phi4mm.engine.engine import Engine, Ticket, closed_error
from phi4mm.engine.grammar import Grammars, is_structured
from phi4mm.engine.handle import Handle
from phi4mm.engine.intake import Intake
from phi4mm.engine.row import Group, Prompt
from phi4mm.errors import AdapterError, BatchError, ClosedError, Phi4MMError
from phi4mm.inputs.processor import Processor, Row
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Reply, Request

_AHEAD = 4  # times ``batch_size`` requests of a call that are read or run at a time

_Result = TypeVar("_Result")

Read = Callable[[], tuple[Request, Row]]
Result = Reply | Phi4MMError


class Client:
    """Reads requests and hands them to the engine, which is closed once neither a client nor a handle is left.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
        make_core: makes the engine's core, in the engine's thread, of the number of threads for its operations.
        stop_token_ids: tokens that end a reply.
        read_ahead_bytes: features of media that may wait for the engine.
    """

    def __init__(
        self,
        model: Phi4MMModel,
        processor: Processor,
        make_core: Callable[[int], Core],
        *,
        stop_token_ids: Collection[int],
        read_ahead_bytes: int,
    ) -> None:
        self.model = model
        self.processor = processor
        self._stop_token_ids = frozenset(stop_token_ids)
        self._intake = Intake(read_ahead_bytes)
        self._users = AdapterUsers()
        self.grammars = Grammars(
            processor.tokenizer, vocab_size=model.config.decoder.vocab_size, stop_token_ids=self._stop_token_ids
        )
        self.engine = Engine(make_core, expecting=_pending(self._intake))
        self._finalizer = weakref.finalize(self, _close, self._intake, self.engine)

    def submit(self, request: Request, group: Group | None = None) -> Handle:
        """Queue a request. Media are read, and grammars compiled, in another thread; what is wrong with them is raised
        by the handle.

        Raises:
            PromptError: an option or the prompt is bad.
            ClosedError: the model is closed.
        """
        self.engine.check_open()
        if not (request.images or request.audios or is_structured(request)):
            return self.submit_row(request, self.processor.row(request), group)
        self.check(request)  # now, not once its media are read
        return self.submit_read(lambda: (request, self.processor.row(request)), request.sampling.n, group)

    def submit_read(self, read: Read, n: int = 1, group: Group | None = None) -> Handle:
        """Queue what ``read`` returns, which is called in another thread.

        Raises:
            ClosedError: the model is closed.
        """
        self.engine.check_open()
        handle = make_handle(n)

        def job() -> int:
            if handle.done:  # it was cancelled
                return 0
            try:
                request, row = read()
                for medium in row.media:
                    if not self.engine.has_embeddings(medium.digest):
                        medium.prepare()  # here, where no step of the engine waits for it
                self._enter(handle, request, row, group)
            except Exception as error:
                _fail(handle, error if isinstance(error, Phi4MMError) else _unexpected(error))
                return 0
            return sum(medium.nbytes for medium in row.media)

        self._intake.submit(job, refused=lambda: _fail(handle, closed_error()))
        return handle

    def submit_row(self, request: Request, row: Row, group: Group | None = None) -> Handle:
        """Queue a request that is read; its grammar is compiled here.

        Raises:
            PromptError: a token id of its options is not in the vocabulary, or a schema, grammar or tool is wrong.
            ClosedError: the model is closed.
        """
        handle = make_handle(request.sampling.n)
        self._enter(handle, request, row, group, counted=False)
        return handle

    def results(self, reads: Sequence[Read], *, batch_size: int, choices: Sequence[int] | None = None) -> list[Result]:
        """Each request's reply or error, in order; at most ``batch_size`` of them are decoded at a time.

        Args:
            choices: how many replies each request asks for; one each by default.

        If the caller is interrupted, nothing of the call goes on.
        """
        group = Group(batch_size)
        room = threading.Semaphore(_AHEAD * batch_size)
        handles: list[Handle] = []
        try:
            for read, n in zip(reads, choices or [1] * len(reads), strict=True):
                room.acquire()
                handle = self.submit_read(read, n, group)
                handle.when_done(room.release)
                handles.append(handle)
            return [result_of(handle) for handle in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def close(self) -> None:
        """End the engine; each request that has not ended fails with a ``ClosedError``."""
        self._finalizer()

    def between_steps(self, function: Callable[[], _Result]) -> _Result:
        """What a function returns, which is called in the engine's thread between two steps."""
        return self.engine.call(lambda _: function())

    @contextmanager
    def without_users(self, adapter: str) -> Iterator[None]:
        """Entered once no request uses an adapter; those that name it are refused until it is left. What was computed
        with it is dropped from the KV cache."""
        self._users.retire(adapter)
        try:
            yield
            self.engine.call(lambda core: core.scheduler.drop_prefixes(adapter))
        finally:
            self._users.allow(adapter)

    def check(self, request: Request) -> None:
        """Refuse options that this model cannot carry out.

        Raises:
            PromptError: a token id is not in the vocabulary.
        """
        request.sampling.check_vocabulary(self.model.config.decoder.vocab_size)

    def _enter(self, handle: Handle, request: Request, row: Row, group: Group | None, *, counted: bool = True) -> None:
        self.check(request)
        adapters = row.route.adapters
        stops = self._stop_token_ids | set(request.sampling.stop_token_ids)
        constraint = self.grammars.constraint(request)
        sampling = request.sampling
        if request.tools and request.tool_choice == "none":
            begins = self.processor.tokenizer.control("<|tool_call|>")
            sampling = replace(sampling, banned_tokens=(*sampling.banned_tokens, begins))
        for choice, one in enumerate((handle, *handle.alternatives)):
            prompt = Prompt(
                token_ids=row.token_ids,
                route=row.route,
                sampling=sampling,
                stop_token_ids=stops,
                media=row.media,
                choice=choice,
                constraint=constraint.copy() if constraint is not None and choice else constraint,
                released=self._intake.release if counted and not choice else None,
            )
            ticket = Ticket(prompt, one, group)
            answer = Answer(
                row.route, len(row.token_ids), self.processor.tokenizer, request.sampling, stops, request.tools
            )
            self._users.begin(adapters)
            one.when_done(partial(self._users.end, adapters))
            if not one.begin(answer, partial(self._cancel, ticket)):
                prompt.drop()
                continue
            try:
                known = self.model.adapters
                missing = [name for name in adapters if name not in known]
                if missing:
                    raise AdapterError(f"adapter {missing[0]!r} was unloaded; name another or load it again")
                self.engine.submit(ticket)
            except Phi4MMError as error:
                one.fail(error)
                raise

    def _cancel(self, ticket: Ticket) -> None:
        self.engine.cancel(ticket)


class AdapterUsers:
    """How many requests use each adapter."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._retired: set[str] = set()

    def begin(self, adapters: Iterable[str]) -> None:
        with self._changed:
            for name in adapters:
                if name in self._retired:
                    raise AdapterError(f"adapter {name!r} is being unloaded; name another or load it again")
            self._counts.update(adapters)

    def end(self, adapters: Iterable[str]) -> None:
        with self._changed:
            self._counts.subtract(adapters)
            self._changed.notify_all()

    def retire(self, adapter: str) -> None:
        with self._changed:
            self._retired.add(adapter)
            while self._counts[adapter] > 0:
                self._changed.wait()

    def allow(self, adapter: str) -> None:
        with self._changed:
            self._retired.discard(adapter)


def make_handle(n: int) -> Handle:
    """A handle for ``n`` replies to one request."""
    return Handle(tuple(Handle() for _ in range(n - 1)))


def result_of(handle: Handle) -> Result:
    """A handle's reply, or its error where that concerns this request alone.

    Raises:
        ClosedError: the engine was closed.
    """
    try:
        return handle.result()
    except ClosedError:
        raise
    except Phi4MMError as error:
        return error


def all_or_errors(results: Sequence[_Result | Phi4MMError]) -> list[_Result]:
    """The results, or a ``BatchError`` that holds them where some of them failed."""
    good = [None if isinstance(result, Phi4MMError) else result for result in results]
    errors = {index: result for index, result in enumerate(results) if isinstance(result, Phi4MMError)}
    if errors:
        raise BatchError(good, errors)
    return [result for result in good if result is not None]


def _fail(handle: Handle, error: Exception) -> None:
    for one in (handle, *handle.alternatives):
        one.fail(error)


def _unexpected(cause: Exception) -> EngineError:
    error = EngineError(f"the request could not be read ({type(cause).__name__}: {cause}); please report this")
    error.__cause__ = cause
    return error


def _close(intake: Intake, engine: Engine) -> None:
    if engine.is_forked:
        return
    intake.close()
    engine.close()
    intake.join()


def _pending(intake: Intake) -> Callable[[], int]:
    return lambda: intake.num_pending

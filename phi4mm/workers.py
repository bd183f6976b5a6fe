"""Processes that each hold the model: many short clips or requests, on a CPU with several cores."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Any

from phi4mm.environment import default_threads, prepare_environment
from phi4mm.errors import BatchError, ClosedError, Phi4MMError
from phi4mm.types import Reply, Request, Transcript

MOST_AT_ONCE = 128  # inputs handed to a process together: enough to fill its batches, few enough to share out evenly


class Workers:
    """Processes that share out a batch, each with the model and its part of the cores.

    A small model's matrices are too small to be split between cores: processes of one core each do more than one
    process with all cores (docs/speed.md). A large model is better off in one process: its weights are read once for
    all.

    Every row's result is what ``Phi4MM`` gives. Calls may come from several threads at once; each gets its own rows.
    Use it as a context manager, or ``close`` it; a program that starts it must guard its main module with
    ``if __name__ == "__main__"``, as ``multiprocessing`` asks.

    Args:
        source: as for ``Phi4MM.from_pretrained``.
        processes: how many; ``None`` for one on each core that this process may use.
        **options: of ``Phi4MM.from_pretrained``: dtype, quantize, merge, prepack, revision.

    Raises:
        Phi4MMError: ``processes`` is under 1, the model cannot be loaded, or a process ended.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None, *, processes: int | None = None, **options: Any):
        cores = default_threads()
        count = cores if processes is None else processes
        if count < 1:
            raise Phi4MMError(f"processes is {count}; expected 1 or more")
        context = multiprocessing.get_context("spawn")  # a copy of a process whose threads hold locks can hang
        everyone = context.Barrier(count)
        self._count = count
        self._ending = threading.Lock()  # the pool may be shut down by one thread at a time
        self._closed = False
        self._pool = ProcessPoolExecutor(
            count, context, initializer=_begin, initargs=(everyone, source, options, max(1, cores // count))
        )
        try:
            # A process that is ready waits for the others, so that each takes one of these.
            loading = [self._pool.submit(_ready) for _ in range(count)]
            states = [future.result() for future in loading]
        except BrokenExecutor as error:
            self._pool.shutdown()
            raise Phi4MMError(
                "a worker process ended before it had loaded the model; start fewer of them if memory is short, and "
                'guard the main module with if __name__ == "__main__"'
            ) from error
        except BaseException:  # Ctrl-C
            everyone.abort()
            self._pool.shutdown(cancel_futures=True)
            raise
        self._processes = [process for process in multiprocessing.active_children() if process.pid in states]
        for state in states:
            if isinstance(state, Exception):
                self._pool.shutdown()
                raise state

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes, for those who watch them; none once they are closed."""
        return [] if self._closed else [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes; calls that are still running raise ``ClosedError``. Calling it again does nothing."""
        self._closed = True
        for process in self._processes:
            process.terminate()  # the pool itself would first finish what it has begun
        self._shut_down()

    def _shut_down(self) -> None:
        with self._ending:
            self._pool.shutdown()

    def chat_batch(self, requests: Sequence[Request | Mapping[str, Any]], *, batch_size: int = 16) -> list[Reply]:
        """As ``Phi4MM.chat_batch``; an open file cannot be handed to another process: pass its path or its bytes.

        Raises:
            BatchError: some requests are bad; its ``results`` hold the replies to the others.
            ClosedError: the workers were closed.
            Phi4MMError: a process ended; make new workers.
        """
        return self._share_out("chat_batch", requests, {"batch_size": batch_size})

    def transcribe_batch(self, audios: Sequence[Any], **options: Any) -> list[Transcript]:
        """As ``Phi4MM.transcribe_batch``, with its options; an open file cannot be handed to another process: pass its
        path or its bytes.

        Raises:
            BatchError: some clips are bad; its ``results`` hold the transcripts of the others.
            ClosedError: the workers were closed.
            Phi4MMError: a process ended; make new workers.
        """
        return self._share_out("transcribe_batch", audios, options)

    def _share_out(self, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> list[Any]:
        """The inputs' results, in their order."""
        results: list[Any] = [None] * len(inputs)
        errors: dict[int, Phi4MMError] = {}
        try:
            for part, answer in self._answers(method, inputs, options, errors):
                if isinstance(answer, Exception):  # an option is wrong, the same for all parts
                    raise answer
                for index, result in zip(part, answer[0], strict=True):
                    results[index] = result
                errors |= {part[place]: error for place, error in answer[1].items()}
        except _PoolEnded as error:
            raise self._ended() from error.__cause__
        if errors:
            raise BatchError(results, errors)
        return results

    def _answers(
        self, method: str, inputs: Sequence[Any], options: dict[str, Any], errors: dict[int, Phi4MMError]
    ) -> Iterator[tuple[list[int], Any]]:
        """The indices of some inputs with what a process answers to them. Inputs that cannot be handed over go to
        ``errors``. No more parts are under way than keep the processes busy, so that few copies are in memory."""
        packed_options = _packed(options)
        waiting = deque(equal_parts([_size(one) for one in inputs], self._count))
        running: dict[Future[Any], list[int]] = {}
        while waiting or running:
            while waiting and len(running) <= self._count:
                packed: dict[int, bytes] = {}
                for index in waiting.popleft():
                    try:
                        packed[index] = _packed(inputs[index])
                    except Phi4MMError as error:
                        errors[index] = error
                running[self._submit(method, list(packed.values()), packed_options)] = list(packed)
            # A future is never cancelled: the pool of Python 3.11 fails where a process ends at that moment.
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), _answer(future)

    def _submit(self, method: str, inputs: list[bytes], options: bytes) -> Future[Any]:
        try:
            return self._pool.submit(_run, method, inputs, options)
        except RuntimeError as error:  # the pool is broken or shut down
            raise _PoolEnded from error

    def _ended(self) -> Phi4MMError:
        """Why the pool has ended. All its processes are gone then."""
        self._shut_down()
        if self._closed:
            return ClosedError("these workers are closed; make new ones")
        # The pool ended the others by SIGTERM.
        codes = [code for process in self._processes if (code := process.exitcode) not in (None, -signal.SIGTERM)]
        how = f" with code {codes[0]}" if codes else ""
        return Phi4MMError(
            f"a worker process ended{how}, and the others with it; make new workers, fewer of them if memory is short"
        )


class _PoolEnded(Exception):
    """A process of the pool has ended, or the pool was shut down."""


def _answer(future: Future[Any]) -> Any:
    try:
        return future.result()
    except (BrokenExecutor, OSError) as error:  # OSError: while inputs were being sent
        raise _PoolEnded from error


def _packed(value: Any) -> bytes:
    """What is handed to another process; pickled here, one by one, so that a bad one costs only itself.

    Raises:
        Phi4MMError: it cannot be pickled.
    """
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the value's own class raises
        raise Phi4MMError(
            f"cannot be handed to another process ({error}); pass a path, bytes, a picture or samples"
        ) from error


def equal_parts(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """The indices in as many parts for each process, of at most ``MOST_AT_ONCE``, of about the same total size."""
    rounds = -(-len(sizes) // (MOST_AT_ONCE * processes))
    count = min(rounds * processes, len(sizes))
    order = sorted(range(len(sizes)), key=lambda index: -sizes[index])
    return [order[start::count] for start in range(count)]


def _size(one: Any) -> int:
    """About how much work an input is, beside others of its kind: what it takes on disk or in memory."""
    if isinstance(one, str | os.PathLike):
        return os.path.getsize(one) if os.path.isfile(one) else 0
    if isinstance(one, Mapping | Request):
        media = [one.get(name) if isinstance(one, Mapping) else getattr(one, name) for name in ("images", "audios")]
        return sum(_size(medium) for some in media if isinstance(some, list | tuple) for medium in some)
    if isinstance(one, tuple) and one:
        one = one[0]
    return len(one) if hasattr(one, "__len__") else 0


# From here on, what runs in a worker process.


@dataclass
class _Worker:
    """The state of a worker process: its model, or why it could not be loaded."""

    everyone: Barrier
    model: Any


_worker: _Worker | None = None


def _begin(everyone: Barrier, source: Any, options: dict[str, Any], threads: int) -> None:
    """Load the model. Ctrl-C ends a process that is loading; later it is for the program that started this."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_environment(threads)
    try:
        import torch

        from phi4mm.api import Phi4MM

        torch.set_num_threads(threads)
        model: Any = Phi4MM.from_pretrained(source, device="cpu", **options)
    except Exception as error:  # handed to the constructor by ``_ready``
        model = error
    _worker = _Worker(everyone, model)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """A program that was killed leaves no processes: the pool alone would let them wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ready() -> int | Exception:
    """This process's id, or why its model cannot be loaded; once all processes are that far."""
    assert _worker is not None
    _worker.everyone.wait()
    return _portable(_worker.model) if isinstance(_worker.model, Exception) else os.getpid()


def _run(method: str, inputs: list[bytes], options: bytes) -> tuple[list[Any], dict[int, Phi4MMError]] | Exception:
    """The results of the inputs that have one, ``None`` for the others, and the errors of those; or what is wrong with
    the call."""
    assert _worker is not None
    values: list[Any] = []
    errors: dict[int, Phi4MMError] = {}
    for index, one in enumerate(inputs):
        try:
            values.append(pickle.loads(one))
        except Exception as error:  # whatever the value's own class raises
            errors[index] = Phi4MMError(f"cannot be read in another process ({error}); pass a path, bytes or samples")
    places = [index for index in range(len(inputs)) if index not in errors]
    results: list[Any] = [None] * len(inputs)
    try:
        answers = getattr(_worker.model, method)(values, **pickle.loads(options))
    except BatchError as error:
        answers = error.results
        errors |= {places[index]: cause for index, cause in error.errors.items()}
    except Exception as error:
        return _portable(error)
    for place, answer in zip(places, answers, strict=True):
        results[place] = answer
    return results, errors


def _portable(error: Exception) -> Exception:
    """The error, or one with its text where it cannot be handed to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the error's own class raises
        return Phi4MMError(f"{type(error).__name__}: {error}")
    return error

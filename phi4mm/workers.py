"""Processes that each hold the model: many short clips or requests, on a CPU with several cores."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from phi4mm.environment import default_threads
from phi4mm.errors import BatchError, ClosedError, Phi4MMError
from phi4mm.types import Reply, Request, Transcript
from phi4mm.validate import check_sequence, check_whole
from phi4mm.worker_process import Answer, ProcessEnded, WorkerProcess

MOST_AT_ONCE = 128  # inputs handed to a process together: enough to fill its batches, few enough to share out evenly
MOST_ENDS = 3  # processes that may end while they have one of these inputs alone


class Workers:
    """Processes that share out a batch, each with the model and its part of the cores.

    A small model's matrices are too small to be split between cores: processes of one core each do more than one
    process with all cores (docs/speed.md). A large model is better off in one process: its weights are read once for
    all.

    Every row's result is what ``Phi4MM`` gives. Calls may come from several threads at once; each gets its own rows.
    Use it as a context manager, or ``close`` it; a program that starts it must guard its main module with
    ``if __name__ == "__main__"``, as ``multiprocessing`` asks. A process that ends, as one that the system kills for
    want of memory, is replaced and what it had is done again; only an input that ends its process each time fails.

    Args:
        source: as for ``Phi4MM.from_pretrained``.
        processes: how many; ``None`` for one on each core that this process may use.
        **options: of ``Phi4MM.from_pretrained``: dtype, quantize, merge, prepack, revision.

    Raises:
        Phi4MMError: ``processes`` is no whole number or under 1, the model cannot be loaded, or a process ended before
            it was.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None, *, processes: int | None = None, **options: Any):
        check_whole("processes", processes, 1, or_none=True)
        cores = default_threads()
        count = processes or cores
        self._setting = (source, options, max(1, cores // count))
        self._owner = os.getpid()
        self._changing = threading.Lock()
        self._closed = False
        self._processes: list[WorkerProcess] = []
        try:
            self._processes += (WorkerProcess(*self._setting) for _ in range(count))
            for process in self._processes:
                process.wait_until_ready()
        except BaseException as error:
            for process in self._processes:
                process.end()
            if isinstance(error, ProcessEnded):
                raise _not_loaded(error) from None
            raise
        self._idle = SimpleQueue[int]()  # numbers of the processes that wait for work
        for place in range(count):
            self._idle.put(place)
        self._threads = ThreadPoolExecutor(count, "phi4mm-workers")  # each waits for a process

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes, for those who watch them; none once they are closed."""
        return [number for process in self._processes if (number := process.process_id) is not None]

    def close(self) -> None:
        """End the processes; calls that are still running raise ``ClosedError``. Calling it again does nothing."""
        if os.getpid() != self._owner:
            return
        with self._changing:
            self._closed = True
            for process in self._processes:
                process.end()
        self._threads.shutdown(cancel_futures=True)

    def chat_batch(self, requests: Sequence[Request | Mapping[str, Any]], *, batch_size: int = 16) -> list[Reply]:
        """As ``Phi4MM.chat_batch``; an open file cannot be handed to another process: pass its path or its bytes.

        Raises:
            BatchError: some requests are bad, or end their process; its ``results`` hold the replies to the others.
            ClosedError: the workers were closed.
        """
        check_sequence("requests", requests, "requests")
        return self._share_out("chat_batch", requests, {"batch_size": batch_size})

    def transcribe_batch(self, audios: Sequence[Any], **options: Any) -> list[Transcript]:
        """As ``Phi4MM.transcribe_batch``, with its options; an open file cannot be handed to another process: pass its
        path or its bytes.

        Raises:
            BatchError: some clips are bad, or end their process; its ``results`` hold the transcripts of the others.
            ClosedError: the workers were closed.
        """
        check_sequence("audios", audios, "audio inputs")
        return self._share_out("transcribe_batch", audios, options)

    def _share_out(self, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> list[Any]:
        """The inputs' results, in their order."""
        if os.getpid() != self._owner:
            raise Phi4MMError("these workers belong to the process from which this one was forked; make new ones here")
        results: list[Any] = [None] * len(inputs)
        errors: dict[int, Phi4MMError] = {}
        for part, answer in self._answers(method, inputs, options, errors):
            if isinstance(answer, Exception):  # an option is wrong, the same for all parts
                raise answer
            for index, result in zip(part, answer[0], strict=True):
                results[index] = result
            errors |= {part[place]: error for place, error in answer[1].items()}
        if errors:
            raise BatchError(results, errors)
        return results

    def _answers(
        self, method: str, inputs: Sequence[Any], options: dict[str, Any], errors: dict[int, Phi4MMError]
    ) -> Iterator[tuple[list[int], Answer]]:
        """The indices of some inputs with what a process answers to them. Inputs that cannot be handed over go to
        ``errors``. No more parts are under way than keep the processes busy, so that few copies are in memory."""
        packed_options = _packed(options)
        waiting = deque(equal_parts([_size(one) for one in inputs], len(self._processes)))
        running: dict[Future[Answer], list[int]] = {}
        # ``concurrent.futures.wait`` does not wake up for futures that ``close`` cancels; their callbacks are called.
        ended: SimpleQueue[Future[Answer]] = SimpleQueue()
        try:
            while waiting or running:
                while waiting and len(running) <= len(self._processes):
                    packed: dict[int, bytes] = {}
                    for index in waiting.popleft():
                        try:
                            packed[index] = _packed(inputs[index])
                        except Phi4MMError as error:
                            errors[index] = error
                    future = self._submit(method, list(packed.values()), packed_options)
                    running[future] = list(packed)
                    future.add_done_callback(ended.put)
                future = ended.get()
                if future.cancelled():
                    raise _closed()
                yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()

    def _submit(self, method: str, inputs: list[bytes], options: bytes) -> Future[Answer]:
        with self._changing:
            if self._closed:
                raise _closed()
            return self._threads.submit(self._on_one, method, inputs, options)

    def _on_one(self, method: str, inputs: list[bytes], options: bytes) -> Answer:
        """What a process that is idle answers; there are as many as threads.

        If it ends, it may have been for these inputs or not: they are tried on another, together and then one by one.
        """
        place = self._idle.get()
        try:
            for _ in range(2):
                try:
                    return self._call(place, method, inputs, options)
                except ProcessEnded:
                    continue
            results: list[Any] = [None] * len(inputs)
            errors: dict[int, Phi4MMError] = {}
            ends: list[ProcessEnded] = []
            for index, one in enumerate(inputs):
                if len(ends) < MOST_ENDS:
                    try:
                        answer = self._call(place, method, [one], options)
                    except ProcessEnded as ended:
                        ends.append(ended)
                    else:
                        if isinstance(answer, Exception):
                            return answer
                        results[index] = answer[0][0]
                        if 0 in answer[1]:
                            errors[index] = answer[1][0]
                        continue
                errors[index] = Phi4MMError(f"{ends[-1]} with this input; start fewer of them if memory is short")
            return results, errors
        finally:
            self._idle.put(place)

    def _call(self, place: int, method: str, inputs: list[bytes], options: bytes) -> Answer:
        """What a process answers, a new one if it has ended.

        Raises:
            ProcessEnded: it ends before it answers.
            ClosedError: the workers were closed.
        """
        try:
            if self._processes[place].process_id is None:
                with self._changing:
                    if self._closed:
                        raise _closed()
                    self._processes[place] = WorkerProcess(*self._setting)
                self._processes[place].wait_until_ready()
            return self._processes[place].call(method, inputs, options)
        except ProcessEnded:
            if self._closed:
                raise _closed() from None
            raise


def _closed() -> ClosedError:
    return ClosedError("these workers are closed; make new ones")


def _not_loaded(ended: ProcessEnded) -> Phi4MMError:
    if ended.unguarded:
        return Phi4MMError(
            "Workers is made whenever the main module is run, also by the processes that it starts; put what the "
            'program does under if __name__ == "__main__":'
        )
    return Phi4MMError(f"{ended} before it had loaded the model; start fewer of them if memory is short")


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

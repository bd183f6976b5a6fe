"""Processes that each hold the model: many short clips or requests, on a CPU with several cores."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NoReturn

from phi4mm.errors import BatchError, Phi4MMError
from phi4mm.types import Reply, Request, Transcript

MOST_AT_ONCE = 128  # inputs handed to a process together: enough to fill its batches, few enough to share out evenly


@dataclass(frozen=True)
class _Input:
    """One input on its way to a process."""

    value: Any


class Workers:
    """Processes that share out a batch, each with the model and its part of the cores.

    A small model's matrices are too small to be split between cores: processes of one core each do more than one
    process with all cores (docs/speed.md). A large model is better off in one process: its weights are read once for
    all.

    Every row's result is what ``Phi4MM`` gives. Use it as a context manager, or ``close`` it; a program that starts it
    must guard its main module with ``if __name__ == "__main__"``, as ``multiprocessing`` asks.

    Args:
        source: as for ``Phi4MM.from_pretrained``.
        processes: how many; ``None`` for one on each core.
        **options: of ``Phi4MM.from_pretrained``: dtype, quantize, merge, prepack, revision.

    Raises:
        Phi4MMError: ``processes`` is under 1, or the model cannot be loaded.
    """

    def __init__(self, source: str | os.PathLike[str] | None = None, *, processes: int | None = None, **options: Any):
        cores = os.cpu_count() or 1
        count = cores if processes is None else processes
        if count < 1:
            raise Phi4MMError(f"processes is {count}; expected 1 or more")
        context = multiprocessing.get_context("spawn")  # a copy of a process whose threads hold locks can hang
        self._processes = []
        self._connections: list[Connection] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, source, options, max(1, cores // count))
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        try:
            for connection in self._connections:
                if isinstance(answer := self._receive(connection), Exception):
                    raise answer
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes, for those who watch them."""
        return [process.pid for process in self._processes if process.pid is not None]

    def close(self) -> None:
        """End the processes. Calling it again does nothing."""
        for connection in self._connections:
            connection.close()  # which is how a process learns that there is nothing more to do
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self._connections, self._processes = [], []

    def chat_batch(self, requests: Sequence[Request | Mapping[str, Any]], *, batch_size: int = 16) -> list[Reply]:
        """As ``Phi4MM.chat_batch``; an open file cannot be handed to another process: pass its path or its bytes.

        Raises:
            BatchError: some requests are bad; its ``results`` hold the replies to the others.
            Phi4MMError: a process ended.
        """
        return self._share_out("chat_batch", requests, {"batch_size": batch_size})

    def transcribe_batch(self, audios: Sequence[Any], **options: Any) -> list[Transcript]:
        """As ``Phi4MM.transcribe_batch``, with its options; an open file cannot be handed to another process: pass its
        path or its bytes.

        Raises:
            BatchError: some clips are bad; its ``results`` hold the transcripts of the others.
            Phi4MMError: a process ended.
        """
        return self._share_out("transcribe_batch", audios, options)

    def _share_out(self, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> list[Any]:
        """The inputs' results, in their order."""
        if not self._connections:
            raise Phi4MMError("these workers are closed; make new ones")
        results: list[Any] = [None] * len(inputs)
        errors: dict[int, Phi4MMError] = {}
        failure: Exception | None = None  # an option is wrong, the same for all parts
        try:
            for part, answer in self._answers(method, inputs, options, errors):
                if isinstance(answer, Exception):
                    failure = answer
                    continue
                for index, result in zip(part, answer[0], strict=True):
                    results[index] = result
                errors |= {part[place]: error for place, error in answer[1].items()}
        except BaseException:
            self.close()  # or the next call would be given this one's answers
            raise
        if failure is not None:
            raise failure
        if errors:
            raise BatchError(results, errors)
        return results

    def _answers(
        self, method: str, inputs: Sequence[Any], options: dict[str, Any], errors: dict[int, Phi4MMError]
    ) -> Iterator[tuple[list[int], Any]]:
        """The indices of some inputs with what a process answers to them; after an error no more are handed over. A
        process is handed the next part as soon as it is done. Inputs that cannot be handed over go to ``errors``."""
        waiting = deque(equal_parts([_size(one) for one in inputs], len(self._connections)))
        idle, busy = deque(self._connections), dict[Connection, list[int]]()
        while waiting or busy:
            while waiting and idle:
                connection, part = idle.popleft(), waiting.popleft()
                busy[connection] = self._hand_over(connection, part, inputs, errors)
                self._send(connection, (method, options))
            ready = wait(busy)
            for connection in [connection for connection in busy if connection in ready]:
                answer = self._receive(connection)
                if isinstance(answer, Exception):
                    waiting.clear()
                idle.append(connection)
                yield busy.pop(connection), answer

    def _hand_over(
        self, connection: Connection, part: Sequence[int], inputs: Sequence[Any], errors: dict[int, Phi4MMError]
    ) -> list[int]:
        """Send some inputs; the indices of those that could be sent. The errors of the others go to ``errors``."""
        sent = []
        for index in part:
            try:
                self._send(connection, _Input(inputs[index]))
            except (TypeError, AttributeError, pickle.PicklingError) as error:  # raised before anything is sent
                errors[index] = Phi4MMError(
                    f"cannot be handed to another process ({error}); pass a path, bytes, a picture or samples"
                )
            else:
                sent.append(index)
        return sent

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._ended(connection)

    def _receive(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionResetError):
            self._ended(connection)

    def _ended(self, connection: Connection) -> NoReturn:
        process = self._processes[self._connections.index(connection)]
        process.join()
        raise Phi4MMError(
            f"a worker process ended with code {process.exitcode}; start fewer of them if memory is short"
        ) from None


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


def _serve(connection: Connection, source: Any, options: dict[str, Any], threads: int) -> None:
    """A worker's life: load the model, then take inputs and answer ``(method, options)`` with ``(results, errors)`` of
    those taken, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started this
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported: threads of its own heed this alone
    import torch

    from phi4mm.api import Phi4MM

    torch.set_num_threads(threads)
    try:
        model = Phi4MM.from_pretrained(source, device="cpu", **options)
    except Exception as error:
        connection.send(error)
        return
    connection.send("ready")
    inputs: list[Any] = []
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, _Input):
            inputs.append(message.value)
            continue
        method, keywords = message
        try:
            answer: Any = (getattr(model, method)(inputs, **keywords), {})
        except BatchError as error:
            answer = (error.results, error.errors)
        except Exception as error:
            answer = error
        connection.send(answer)
        inputs = []

"""A process that holds the model: what starts it and talks to it, and what runs in it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from phi4mm.environment import prepare_environment
from phi4mm.errors import BatchError, Phi4MMError

UNGUARDED = 78  # exit code of a process that ran its program's main module, which would have started further ones

Answer = tuple[list[Any], dict[int, Phi4MMError]] | Exception


class ProcessEnded(Exception):
    """A worker process has ended; its text says how."""

    def __init__(self, code: int | None) -> None:
        self.unguarded = code == UNGUARDED
        name = signal.Signals(-code).name if code is not None and -code in set(signal.Signals) else None
        super().__init__(
            f"a worker process was ended by {name}" if name else f"a worker process ended with code {code}"
        )


class WorkerProcess:
    """One process with its model. Calls come from one thread at a time; ``end`` from any.

    Args:
        source, options: of ``Phi4MM.from_pretrained``.
        threads: of each operation.
    """

    def __init__(self, source: Any, options: dict[str, Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a copy of a process whose threads hold locks can hang
        self._connection, others = context.Pipe()
        self._process = context.Process(target=_serve, args=(others, source, options, threads), daemon=True)
        try:
            self._process.start()
        except RuntimeError as error:  # in a process that is being started so, and runs its program's main module
            if "bootstrapping" in str(error):
                sys.exit(UNGUARDED)
            raise
        finally:
            others.close()

    @property
    def process_id(self) -> int | None:
        """Of the process; ``None`` once it has ended."""
        return self._process.pid if self._process.is_alive() else None

    def wait_until_ready(self) -> None:
        """Return once the model is loaded.

        Raises:
            ProcessEnded: the process ended before.
            Exception: why the model cannot be loaded.
        """
        error = self._received()
        if error is not None:
            self.end()
            raise error

    def call(self, method: str, inputs: list[bytes], options: bytes) -> Answer:
        """The results of the inputs that have one, ``None`` for the others, and the errors of those; or what is wrong
        with the call.

        Args:
            method: of ``Phi4MM``, which takes a list of inputs.
            inputs, options: pickled.

        Raises:
            ProcessEnded: the process ended before it had answered.
        """
        try:
            self._connection.send((method, inputs, options))
        except OSError:
            raise self._ended() from None
        return self._received()

    def end(self) -> None:
        """End the process at once; calling it again does nothing."""
        self._process.terminate()
        self._process.join()

    def _received(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> ProcessEnded:
        self._process.join()
        return ProcessEnded(self._process.exitcode)


# From here on, what runs in a worker process.


def _serve(connection: Connection, source: Any, options: dict[str, Any], threads: int) -> None:
    """Load the model and answer calls until the program that started this has gone.

    Ctrl-C ends a process that is loading; later it is for that program.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_environment(threads)
    try:
        import torch

        from phi4mm.api import Phi4MM

        torch.set_num_threads(threads)
        model = Phi4MM.from_pretrained(source, device="cpu", **options)
    except Exception as error:
        connection.send(_portable(error))
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(None)
    while True:
        try:
            method, inputs, packed_options = connection.recv()
        except EOFError:
            return
        connection.send(_run(getattr(model, method), inputs, packed_options))


def _end_with_parent() -> None:
    """A program that was killed leaves no processes, whatever they are doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(method: Any, inputs: list[bytes], options: bytes) -> Answer:
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
        answers = method(values, **pickle.loads(options))
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

"""Requests on their way to the engine: media are read in threads, ahead of the engine, within a bound of bytes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

_JOIN_SECONDS = 5.0  # that ``join`` waits for what is being read


class Intake:
    """Reads requests in their order while fewer than ``max_bytes`` of features wait for the engine.

    The threads are its own, as those of ``concurrent.futures`` take no more work once the main thread has ended, which
    other threads may outlive.

    Args:
        max_bytes: of features that were read and not encoded; one request for each thread is read in any case.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._jobs: deque[tuple[Callable[[], int], Callable[[], None]]] = deque()
        self._num_reading = 0
        self._num_threads = min(os.cpu_count() or 1, 4)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def num_pending(self) -> int:
        """Requests that are not read yet and may be read now."""
        with self._changed:
            return self._num_reading + (len(self._jobs) if self._may_read() else 0)

    @property
    def held_bytes(self) -> int:
        """Of features that were read and not encoded."""
        return self._held_bytes

    def submit(self, job: Callable[[], int], refused: Callable[[], None]) -> None:
        """Read a request when it is its turn, or report that it will not be, as this was closed. The job returns the
        bytes that it holds until ``release``; it must not raise."""
        with self._changed:
            closed = self._closed
            if not closed:
                self._jobs.append((job, refused))
                num_idle = len(self._threads) - self._num_reading
                if num_idle < len(self._jobs) and len(self._threads) < self._num_threads:
                    name = f"phi4mm-read-{len(self._threads)}"
                    self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                    self._threads[-1].start()
                self._changed.notify()
        if closed:
            refused()

    def release(self, nbytes: int) -> None:
        """So many bytes are held no more."""
        with self._changed:
            self._held_bytes -= nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """Read nothing more: the jobs that were not begun are refused, those that were go on to their end."""
        with self._changed:
            self._closed = True
            left, self._jobs = list(self._jobs), deque()
            self._changed.notify_all()
        for _, refused in left:
            refused()

    def join(self) -> None:
        """Wait for the threads' end after ``close``, but not for long: a file may be anything."""
        end = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0.0))

    def _may_read(self) -> bool:
        return self._held_bytes < self._max_bytes

    def _run(self) -> None:
        while (job := self._next()) is not None:
            nbytes = job()
            del job  # or what it refers to would live until the next one comes
            with self._changed:
                self._num_reading -= 1
                self._held_bytes += nbytes

    def _next(self) -> Callable[[], int] | None:
        """Wait for the next job; ``None`` once this is closed."""
        with self._changed:
            while not (self._closed or (self._jobs and self._may_read())):
                self._changed.wait()
            if self._closed:
                return None
            self._num_reading += 1
            return self._jobs.popleft()[0]

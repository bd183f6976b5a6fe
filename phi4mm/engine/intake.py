"""Requests on their way to the engine: media are read in threads, ahead of the engine, within a bound of bytes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Intake:
    """Reads requests in their order while fewer than ``max_bytes`` of features wait for the engine.

    Args:
        max_bytes: of features that were read and not encoded; one request at a time is read in any case.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._jobs: deque[tuple[Callable[[], int], Callable[[], None]]] = deque()
        self._num_reading = 0
        self._num_threads = min(os.cpu_count() or 1, 4)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def num_pending(self) -> int:
        """Requests that are not read yet and may be read now."""
        with self._lock:
            return self._num_reading + (len(self._jobs) if self._may_read() else 0)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def submit(self, job: Callable[[], int], refused: Callable[[], None]) -> None:
        """Read a request when it is its turn, or tell that it will not be, as this was closed. The job returns the
        bytes that it holds until ``release``; it must not raise."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._jobs.append((job, refused))
        if closed:
            refused()
        else:
            self._start()

    def release(self, nbytes: int) -> None:
        """So many bytes are held no more."""
        with self._lock:
            self._held_bytes -= nbytes
        self._start()

    def close(self) -> None:
        """Read nothing more: the jobs that were not begun are refused, those that were go on to their end."""
        with self._lock:
            self._closed = True
            left, self._jobs = list(self._jobs), deque()
            pool = self._pool
        for _, refused in left:
            refused()
        if pool is not None:
            pool.shutdown(wait=False)

    def _start(self) -> None:
        with self._lock:
            while self._jobs and not self._closed and self._num_reading < self._num_threads and self._may_read():
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="phi4mm-read")
                self._num_reading += 1
                self._pool.submit(self._read, self._jobs.popleft()[0])

    def _may_read(self) -> bool:
        return self._held_bytes < self._max_bytes

    def _read(self, job: Callable[[], int]) -> None:
        nbytes = job()
        with self._lock:
            self._num_reading -= 1
            self._held_bytes += nbytes
        self._start()

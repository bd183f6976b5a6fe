"""Ctrl-C and requests to end (SIGTERM, SIGHUP), which a command answers with one line and its exit code."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NAMES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}  # Windows has no SIGHUP


class Interrupted(KeyboardInterrupt):
    """The program was asked to end.

    Attributes:
        program: its name, for messages.
        code: its exit code, as shells have it: 128 and the number of the signal; 130 for Ctrl-C.
    """

    def __init__(self, program: str, number: int = signal.SIGINT) -> None:
        super().__init__(_NAMES[signal.Signals(number).name])
        self.program = program
        self.code = 128 + number


class Interrupts:
    """While it is entered, the first request to end raises ``Interrupted`` in the main thread, so that what is begun
    can be put away; the second ends the process at once.

    A request that the process was started to ignore (``nohup``) stays ignored. In another thread than the main one
    nothing is changed.

    Attributes:
        first: the request, once it has come, even where the exception was lost on its way.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._handlers = _replaced(lambda before: self._handle)
        self.first: Interrupted | None = None

    def __enter__(self) -> Interrupts:
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(None, None, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            exit_now(self.first)
        self.first = Interrupted(self._program, number)
        raise self.first


@contextmanager
def exits_at_once() -> Iterator[None]:
    """Around work with nothing to put away, such as loading libraries, which may turn an exception from a signal into
    another or lose it: a request to end that ``Interrupts`` would raise ends the process there and then."""

    def at_once(before: Any) -> Any:
        if not callable(before):
            return before

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                before(number, frame)
            except Interrupted as interrupted:
                exit_now(interrupted)

        return handle

    with _replaced(at_once):
        yield


def exit_now(interrupted: Interrupted) -> None:
    """End the process without waiting for its threads."""
    report(interrupted.program, str(interrupted))
    os._exit(interrupted.code)


def printable(text: str) -> str:
    """Text with its control characters as escapes: they would break the line or drive the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def report(program: str, error: Exception | str) -> None:
    """Report an error in one line on standard error; where nobody reads that, nowhere."""
    try:
        print(f"{program}: {printable(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def _replaced(make: Any) -> Iterator[None]:
    """Each signal's handler replaced by what ``make`` makes of it."""
    with ExitStack() as stack:
        for name in _NAMES if threading.current_thread() is threading.main_thread() else ():
            number = getattr(signal, name, None)
            before = None if number is None else signal.getsignal(number)
            if number is not None and before not in (None, signal.SIG_IGN):
                signal.signal(number, make(before))
                stack.callback(signal.signal, number, before)
        yield

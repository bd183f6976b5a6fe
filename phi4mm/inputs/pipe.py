"""What comes through a pipe: read once, as it comes, and decoded in a thread of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from queue import Queue
from typing import IO, Any, BinaryIO, TypeVar

from phi4mm.errors import AudioError

_Item = TypeVar("_Item")

_AHEAD = 2  # items that are made before they are asked for
_KEPT = 1 << 16  # bytes of the start, in which headers are
_LEAST = 64  # bytes by which formats are told apart
_AT_ONCE = 1 << 16  # bytes
_CHECKED_EVERY = 1 << 26  # bytes of a copy, whether the disk has room
_LEFT_FREE = 1 << 29  # bytes of the disk that a copy leaves
_AS_THEY_COME = (b"RIFF", b"fLaC", b"ID3", b"\x1aE\xdf\xa3")


def is_pipe(source: Any) -> bool:
    """Whether a source is read once and may wait for another program: a pipe, a socket, a terminal."""
    if isinstance(source, str | os.PathLike):
        return os.path.exists(source) and not (os.path.isfile(source) or os.path.isdir(source))
    return hasattr(source, "read") and hasattr(source, "seekable") and not source.seekable()


class Pipe:
    """A file that cannot seek.

    Attributes:
        start: its first bytes, ``_LEAST`` of them or more where there are as many.
        count: bytes that were read.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._some = getattr(file, "read1", file.read)  # what is there, without waiting for more
        self._name = name
        self.start = b""
        self.count = 0
        self._unread = b""
        while len(self._unread) < _LEAST and (content := self._more(_AT_ONCE)):
            self._unread += content

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        if not self._unread:
            return self._more(size)
        content, self._unread = self._unread[:size], self._unread[size:]
        return content

    def decodes_as_it_comes(self) -> bool:
        """Whether its format is one of wav, flac, mp3, aac, webm and mkv. In others what stands at the end may be
        needed first (mp4), or where their parts begin (ogg)."""
        synchronised = self.start[:1] == b"\xff" and self.start[1:2] >= b"\xe0"  # a frame of mp3 or aac
        return synchronised or self.start.startswith(_AS_THEY_COME)

    def copy_to(self, copy: IO[bytes]) -> None:
        """Copy all of it to a temporary file, which is left at its start.

        Raises:
            AudioError: it does not end before the disk is almost full.
            OSError: the disk is full, or the pipe fails.
        """
        checked = 0
        while content := self.read(_AT_ONCE):
            copy.write(content)
            if self.count - checked >= _CHECKED_EVERY:
                checked = self.count
                if shutil.disk_usage(tempfile.gettempdir()).free < _LEFT_FREE:
                    raise AudioError(
                        f"{self._name}: does not end after {self.count} bytes, which fill the disk of "
                        f"{tempfile.gettempdir()}; save it to a file, or set TMPDIR to a folder of a larger disk"
                    )
        copy.flush()
        copy.seek(0)

    def _more(self, size: int) -> bytes:
        content = self._some(size) or b""
        self.count += len(content)
        if len(self.start) < _KEPT:
            self.start += content[: _KEPT - len(self.start)]
        return bytes(content)


def in_thread(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, made in another thread.

    Signals are handled in the main thread. While FFmpeg waited for a pipe in it, Ctrl-C would be lost.
    """
    queue: Queue[tuple[_Item | None, BaseException | None]] = Queue(_AHEAD)
    left = threading.Event()

    def make() -> None:
        try:
            for item in items:
                queue.put((item, None))
                if left.is_set():
                    return
            queue.put((None, StopIteration()))
        except BaseException as error:
            queue.put((None, error))

    threading.Thread(target=make, name="phi4mm-decode", daemon=True).start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # without an error there is one
    finally:
        left.set()
        while not queue.empty():  # a thread that waits for room goes on, and ends
            queue.get()

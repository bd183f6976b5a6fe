"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its place when all is written; of one that is not, nothing stays.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    # A short name, as that of the file may be the longest that there can be.
    partial = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, partial, os.fspath(partial)):
            error.filename, error.filename2 = os.fspath(path), None
        partial.unlink(missing_ok=True)
        raise

"""What the command line names, as a list of inputs: files, globs, folders, standard input."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

STANDARD_INPUT = "-"
# What is taken from a folder; a file that is named itself may be called anything.
SUFFIXES = {
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf", ".flac", ".flv"),
    *(".m2ts", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mts", ".oga"),
    *(".ogg", ".ogv", ".opus", ".rf64", ".snd", ".sph", ".spx", ".ts", ".w64", ".wav", ".wave", ".weba", ".webm"),
    *(".wma", ".wmv", ".wv"),
}


@dataclass(frozen=True)
class Input:
    """One thing to transcribe.

    Attributes:
        path: a file, or "-".
        output: the path of its outputs below the output folder, without extension.
    """

    path: str
    output: PurePath


def find_inputs(names: Sequence[str], *, recursive: bool) -> list[Input]:
    """Every input, in the order of ``names``; those of a glob or a folder in alphabetical order.

    A name that is neither a file nor a folder nor matches as a glob is kept as it is: reading it raises what is wrong.

    Args:
        names: files, quoted globs (``**`` for any depth), folders, "-".
        recursive: take the folders in folders too.
    """
    found: dict[str, PurePath] = {}
    for name in names:
        if name == STANDARD_INPUT:
            found.setdefault(name, PurePath("stdin"))
            continue
        matches = sorted(glob.glob(name, recursive=True)) if not os.path.exists(name) else []
        for path in matches or [name]:
            if os.path.isdir(path):
                for file in _in_folder(Path(path), recursive):
                    found.setdefault(str(file), file.relative_to(path))
            else:
                found.setdefault(path, PurePath(Path(path).name))
    # talk.wav and talk.mp3 keep their extensions: talk.wav.txt, talk.mp3.txt.
    stems = Counter(output.with_suffix("") for output in found.values())
    return [
        Input(path, output if stems[output.with_suffix("")] > 1 else output.with_suffix(""))
        for path, output in found.items()
    ]


def duplicates(inputs: Sequence[Input]) -> list[str]:
    """Inputs whose outputs would have the same name as those of an earlier one."""
    seen: set[PurePath] = set()
    repeated = []
    for item in inputs:
        if item.output in seen:
            repeated.append(item.path)
        seen.add(item.output)
    return repeated


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    files = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        file
        for file in files
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


@contextmanager
def readable(path: str) -> Iterator[str]:
    """A path to read; standard input is put on disk first, so that it may be longer than memory."""
    if path != STANDARD_INPUT:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "standard input")
        with open(file, "wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        yield file

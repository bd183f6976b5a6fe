"""What the command line names, as a list of inputs: files, globs, folders, standard input."""

from __future__ import annotations

import glob
import io
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from phi4mm.errors import AudioError, Phi4MMError
from phi4mm.inputs.source import is_url

STANDARD_INPUT = "-"
# What is taken from a folder; a file that is named itself may be called anything.
SUFFIXES = {
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf", ".f4v", ".flac"),
    *(".flv", ".latm", ".rm", ".tta", ".voc", ".vob", ".wtv"),
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
    """Every input, in the order of ``names`` and as often as it is named; those of a glob or a folder in alphabetical
    order.

    A name that is neither a file nor a folder nor matches as a glob is kept as it is: reading it raises what is wrong.

    Args:
        names: files, quoted globs (``**`` for any depth), folders, "-".
        recursive: take the folders in folders too.
    """
    found: list[tuple[str, PurePath]] = []
    for name in names:
        if name == STANDARD_INPUT:
            found.append((name, PurePath("stdin")))
            continue
        matches = sorted(glob.glob(name, recursive=True)) if not os.path.exists(name) else []
        for path in matches or [name]:
            if os.path.isdir(path):
                found += [(str(file), file.relative_to(path)) for file in _in_folder(Path(path), recursive)]
            else:
                found.append((path, PurePath(Path(path).name)))
    # talk.wav and talk.mp3 keep their extensions: talk.wav.txt, talk.mp3.txt.
    stems = Counter(_stem(output) for output in dict(found).values())
    return [Input(path, output if stems[_stem(output)] > 1 else _stem(output)) for path, output in found]


def _stem(path: PurePath) -> PurePath:
    """Without its extension; the path of "" stays as it is."""
    return path.with_suffix("") if path.name else path


def duplicates(inputs: Sequence[Input]) -> list[str]:
    """Inputs whose outputs would have the same name as those of another one before it."""
    seen: dict[PurePath, str] = {}
    return [item.path for item in inputs if seen.setdefault(item.output, item.path) != item.path]


def check_folder(folder: Path) -> None:
    """Make a folder for outputs, where it is not there.

    Raises:
        Phi4MMError: it cannot be made, or nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise Phi4MMError(f"{error.filename}: is a file, expected a folder for the outputs; name another") from error
    except OSError as error:
        raise Phi4MMError(f"{folder}: nothing can be written there ({error.strerror}); name another folder") from error


def unreadable(inputs: Sequence[Input]) -> dict[int, AudioError]:
    """What can be seen to be wrong without decoding: index -> error. Until one is found that can be read, files are
    opened as audio too."""
    bad: dict[int, AudioError] = {}
    good = False
    for number, item in enumerate(inputs):
        error = _unreadable(item.path, as_audio=not good)
        good = good or error is None
        if error is not None:
            bad[number] = error
    return bad


def _unreadable(path: str, *, as_audio: bool) -> AudioError | None:
    if path == STANDARD_INPUT:
        return None
    if is_url(path):
        return AudioError(f"{path}: is a URL, expected a file; download it first and pass its path")
    if not os.path.exists(path):
        return AudioError(f"{path}: there is no such file; check the path")
    if not os.access(path, os.R_OK):
        return AudioError(f"{path}: cannot be read (Permission denied); change its permissions")
    if not (as_audio and os.path.isfile(path)):
        return None
    from phi4mm.inputs.audio_file import audio_seconds

    try:
        audio_seconds(path)
    except AudioError as error:
        return error
    return None


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
def readable(path: str, *, often: bool) -> Iterator[Callable[[], Any]]:
    """What opens an input. Standard input is decoded as it comes where its format allows that.

    Args:
        path: a file, or "-".
        often: whether it is opened more than once, each time from its start: standard input is then put on disk.

    Raises:
        AudioError: there is no room on the disk for standard input, or it cannot be read.
    """
    if path != STANDARD_INPUT:
        yield lambda: path
    elif not often:
        yield lambda: _standard_input(sys.stdin.fileno())
    else:
        from phi4mm.inputs.pipe import Pipe

        with tempfile.NamedTemporaryFile(prefix="phi4mm-") as copy:
            try:
                Pipe(_standard_input(sys.stdin.fileno()), "standard input").copy_to(copy)
            except OSError as error:
                raise AudioError(f"standard input: cannot be copied to {copy.name} ({error.strerror})") from error
            yield lambda: _standard_input(copy.name)


def _standard_input(file: str | int) -> io.BufferedReader:
    """A file, or an open one's number, under the name that errors have for it."""
    raw = io.FileIO(file, closefd=isinstance(file, str))
    raw.name = "standard input"
    return io.BufferedReader(raw)

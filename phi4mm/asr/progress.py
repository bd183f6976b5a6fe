"""How far the work is, on a terminal: seconds of audio done, of all, and how many of them a second takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from phi4mm.errors import AudioError


class Progress:
    """A line on standard error; nothing where that is not a terminal, or ``quiet``.

    Args:
        paths: the files to be transcribed.
        each_channel: whether each of a file's channels is transcribed on its own, so that its seconds count for each.
        quiet: show nothing.
        prints: whether segments go to standard output; where that is a terminal too, they show how far the work is.
    """

    def __init__(self, paths: Sequence[str], *, each_channel: bool, quiet: bool, prints: bool) -> None:
        shown = sys.stderr.isatty() and not quiet and not (prints and sys.stdout.isatty())
        self._bar = tqdm(
            total=round(sum(seconds(path, each_channel=each_channel) for path in paths)) or None if shown else None,
            unit="s",
            disable=not shown,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc}{bar} {n_fmt} of {total_fmt} s of audio, {rate_noinv_fmt}, {elapsed}",
        )
        self._done: dict[str, int] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def at(self, name: str, seconds: float) -> None:
        """So much of an input was read."""
        self._bar.set_description_str(f"{name[-30:]}: ", refresh=False)
        self._bar.update(round(seconds) - self._done.get(name, 0))
        self._done[name] = round(seconds)


def seconds(path: str, *, each_channel: bool) -> float:
    """How long the transcribed audio of a file is by its header; 0 where it is not there, or reading uses it up."""
    from phi4mm.inputs.audio import num_channels
    from phi4mm.inputs.audio_file import audio_seconds

    if not os.path.isfile(path):
        return 0.0
    try:
        return (audio_seconds(path) or 0.0) * (num_channels(path) if each_channel else 1)
    except AudioError:  # which the transcription reports
        return 0.0

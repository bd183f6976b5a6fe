"""A part of an audio, as a command line names it: ``START-END``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phi4mm.errors import AudioError, PromptError
from phi4mm.validate import shown

if TYPE_CHECKING:
    from phi4mm.inputs.audio import Waveform

_TIME = r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)"
_CLIP = re.compile(rf"\s*(?:{_TIME})?\s*-\s*(?:{_TIME})?\s*", re.ASCII)


@dataclass(frozen=True)
class Clip:
    """From ``start`` to ``end`` in seconds; ``None`` for the audio's end."""

    start: float = 0.0
    end: float | None = None

    @classmethod
    def parse(cls, text: str) -> Clip:
        """From ``START-END``, each in seconds, ``MM:SS`` or ``HH:MM:SS``; the one or the other may be left out.

        Raises:
            PromptError: it is not of that form, or ends before it starts.
        """
        match = _CLIP.fullmatch(text[:100])
        start, end = (_seconds(*match.groups()[place : place + 3]) for place in (0, 3)) if match else (None, None)
        if start is None and end is None:
            raise PromptError(f"the clip is {shown(text)}; expected START-END, such as 1.5-3 or 1:30-")
        if end is not None and end <= (start or 0.0):
            raise PromptError(f"the clip {shown(text)} ends before it starts; expected START-END")
        return cls(start or 0.0, end)

    def cut(self, waveforms: Iterable[Waveform], name: str) -> Iterator[Waveform]:
        """That part of an audio that comes in consecutive parts; what follows its end is not read.

        Raises:
            AudioError: the audio ends before it starts.
        """
        seconds, empty = 0.0, True
        for waveform in waveforms:
            rate = waveform.sampling_rate
            first = max(round((self.start - seconds) * rate), 0)
            last = None if self.end is None else max(round((self.end - seconds) * rate), 0)
            seconds += waveform.duration
            samples = waveform.samples[first:last]
            if len(samples):
                empty = False
                yield replace(waveform, samples=samples)
            if self.end is not None and seconds >= self.end:
                break
        if empty and self.start:
            raise AudioError(f"{name}: is {seconds:.6g} s long; expected a clip that starts before its end")

    def of(self, waveform: Waveform, name: str) -> Waveform:
        """That part of an audio, or what there is of it.

        Raises:
            AudioError: the audio ends before it starts.
        """
        rate = waveform.sampling_rate
        samples = waveform.samples[round(self.start * rate) : None if self.end is None else round(self.end * rate)]
        if not len(samples):
            raise AudioError(f"{name}: is {waveform.duration:.6g} s long; expected a clip that starts before its end")
        return replace(waveform, samples=samples)


def _seconds(hours: str | None, minutes: str | None, seconds: str | None) -> float | None:
    return None if seconds is None else int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)

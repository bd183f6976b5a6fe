"""What a corpus gives: clips with their references, and where it all comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from phi4mm.errors import AudioError

# Names of the column of references, in the order in which the leaderboard looks for it.
TEXT_COLUMNS = ("text", "raw_transcription", "sentence", "normalized_text", "transcript", "transcription")


@dataclass(frozen=True)
class StoredAudio:
    """Audio inside a downloaded data set: it is read when it is wanted."""

    dataset: Any
    index: int

    def read(self) -> Path | bytes:
        return stored_audio(self.dataset[self.index]["audio"])


@dataclass(frozen=True)
class Clip:
    """One clip of a corpus.

    Attributes:
        audio_filepath: what identifies it in its set.
        text: the reference.
        audio: a file, the bytes of one, or where to read them.
        seconds: the length that the corpus claims, for sorting; ``None`` where it does not claim one.
        parent_id: the recording that it is a chunk of, if any.
        chunk_index: the place of the chunk in its recording, from 0.
    """

    audio_filepath: str
    text: str
    audio: Path | bytes | StoredAudio
    seconds: float | None = None
    parent_id: str | None = None
    chunk_index: int | None = None

    def claimed_seconds(self) -> float:
        """The length for sorting: as claimed, or from the file's header; 0 where the header cannot be read."""
        if self.seconds is not None:
            return self.seconds
        from phi4mm.inputs.audio_file import audio_seconds

        try:
            return audio_seconds(self._content()) or 0.0
        except (OSError, AudioError):  # reported when the clip is loaded
            return 0.0

    def load(self, sampling_rate: int) -> tuple[np.ndarray, float]:
        """Decode, mix down and resample.

        Returns:
            float32 samples [n] at ``sampling_rate``, and the duration in seconds.

        Raises:
            AudioError: the audio cannot be read.
        """
        import soxr

        from phi4mm.inputs.audio import load_audio

        waveform = load_audio(self._content(), name=self.audio_filepath)
        samples = waveform.samples
        if waveform.sampling_rate != sampling_rate:
            samples = soxr.resample(samples, waveform.sampling_rate, sampling_rate, quality="HQ")
        return samples, waveform.duration

    def _content(self) -> Path | bytes:
        return self.audio.read() if isinstance(self.audio, StoredAudio) else self.audio


@dataclass(frozen=True)
class Source:
    """A corpus that is ready to be read.

    Attributes:
        spec: as the user named it.
        path, name, split: the parts of its results' file name.
        language: of its references, as a two-letter code.
        audio_root: the folder that ``audio_filepath`` is relative to; ``None`` for a hub's data set.
        streamed: whether its clips pass by once, in the order of the corpus, too many to hold.
        open_clips: its clips, from the first one, each with an ``audio_filepath`` of its own.
    """

    spec: str
    path: str
    name: str
    split: str
    language: str
    audio_root: Path | None
    streamed: bool
    open_clips: Callable[[], Iterable[Clip]]


def named_apart(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The same clips; a file that comes again is called ``name#2``, ``name#3``, as results go by name."""
    seen: dict[str, int] = {}
    for clip in clips:
        count = seen[clip.audio_filepath] = seen.get(clip.audio_filepath, 0) + 1
        yield clip if count == 1 else replace(clip, audio_filepath=f"{clip.audio_filepath}#{count}")


def stored_audio(value: Mapping[str, Any]) -> Path | bytes:
    """An undecoded audio cell: the bytes of a file, or else its path."""
    content = value.get("bytes")
    return Path(value.get("path") or "") if content is None else bytes(content)


def first_of(wanted: Iterable[str], columns: Iterable[str]) -> str | None:
    present = set(columns)
    return next((name for name in wanted if name in present), None)

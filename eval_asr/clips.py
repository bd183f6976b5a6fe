"""What a corpus gives: clips with their references, and where it all comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval_asr.errors import SourceError
from phi4mm.errors import AudioError, AudioReadError

# Names of the column of references, in the order in which the leaderboard looks for it.
TEXT_COLUMNS = ("text", "raw_transcription", "sentence", "normalized_text", "transcript", "transcription")


@dataclass(frozen=True)
class StoredAudio:
    """Audio inside a downloaded data set: it is read when it is wanted."""

    dataset: Any
    index: int

    def read(self) -> Path | bytes:
        return stored_audio(self.dataset[self.index]["audio"])


# Seconds by which a list of clips and the file itself may differ on where the audio ends: lengths are rounded, and some
# tools count what an encoder adds at both ends.
SLACK = 0.2


@dataclass(frozen=True)
class Span:
    """The part of a file that a clip is, in seconds.

    Attributes:
        offset: where it begins; ``None`` where the list gives none: at the file's beginning.
        duration: how long it is; ``None``: to the file's end.
    """

    offset: float | None = None
    duration: float | None = None

    @property
    def start(self) -> float:
        return self.offset or 0.0

    def cut(self, blocks: Iterable[tuple[np.ndarray, int]], name: str) -> Iterator[tuple[np.ndarray, int]]:
        """The blocks of a file, cut; those after the part are not read.

        A file that ends at most ``SLACK`` after the part is not cut at its end.

        Args:
            blocks: float samples [n, channels], and their sampling rate in Hz.
            name: of the clip, for errors.

        Raises:
            AudioError: the file has an offset and ends more than ``SLACK`` before the part does.
        """
        seconds = 0.0  # of the file that have passed
        held: list[tuple[np.ndarray, int]] = []  # what lies beyond the end, within the slack
        for samples, rate in blocks:
            first = max(0, round((self.start - seconds) * rate))
            last = len(samples) if self.duration is None else round((self.start + self.duration - seconds) * rate)
            if first < len(samples) and last > first:
                yield samples[first:last], rate
            if self.duration is not None and last < len(samples):
                held.append((samples[max(last, 0) :], rate))
            seconds += len(samples) / rate
            if self.duration is not None and seconds > self.start + self.duration + SLACK:
                return
        yield from held
        if self.offset is not None and (
            seconds <= self.start or (self.duration is not None and seconds < self.start + self.duration - SLACK)
        ):
            end = "" if self.duration is None else f" to {self.start + self.duration:g}"
            raise AudioError(f"{name}: is to be cut from {self.start:g}{end} s, but its file has {seconds:.2f} s")


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
        span: the part of the audio that it is; ``None`` for all of it.
    """

    audio_filepath: str
    text: str
    audio: Path | bytes | StoredAudio
    seconds: float | None = None
    parent_id: str | None = None
    chunk_index: int | None = None
    span: Span | None = None

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
            AudioError: the audio cannot be read; an ``AudioReadError`` where it may be read another time.
        """
        import soxr

        from phi4mm.inputs.audio import load_audio
        from phi4mm.inputs.audio_file import decoded_blocks

        name, content = self.audio_filepath, self._content()
        if self.span is None:
            waveform = load_audio(content, name=name)
        else:
            waveform = load_audio(self.span.cut(decoded_blocks(content, name), name), name=name)
        samples = waveform.samples
        if waveform.sampling_rate != sampling_rate:
            samples = soxr.resample(samples, waveform.sampling_rate, sampling_rate, quality="HQ")
        return samples, waveform.duration

    def _content(self) -> Path | bytes:
        if not isinstance(self.audio, StoredAudio):
            return self.audio
        try:
            return self.audio.read()
        except OSError as error:
            reason = error.strerror or error
            raise AudioReadError(f"{self.audio_filepath}: its data set cannot be read ({reason})") from error


@dataclass(frozen=True)
class Source:
    """A corpus that is ready to be read.

    Attributes:
        spec: as the user named it.
        path, name, split: the parts of its results' file name.
        language: of its references, as a two-letter code.
        audio_root: the folder that ``audio_filepath`` is relative to; ``None`` for a hub's data set.
        location: the absolute path of its list or folder; ``None`` for a hub's data set.
        streamed: whether its clips pass by once, in the order of the corpus, too many to hold.
        open_clips: its clips, from the first one, each with an ``audio_filepath`` of its own.
    """

    spec: str
    path: str
    name: str
    split: str
    language: str
    audio_root: Path | None
    location: Path | None
    streamed: bool
    open_clips: Callable[[], Iterable[Clip]]


def local_source(
    spec: str,
    location: Path,
    name: str,
    split: str,
    language: str,
    clips: list[Clip],
    *,
    audio_root: Path | None = None,
) -> Source:
    """A source of this machine.

    Args:
        spec: as the user named it.
        location: the absolute path of its list or folder.
        name, split: of the results.
        language: two-letter code.
        clips: its clips, of which some may have one name.
        audio_root: the folder that names are relative to; by default ``location``.

    Raises:
        SourceError: there are no clips.
    """
    if not clips:
        raise SourceError(f"{spec}: has no clips; write one a line")
    clips = list(named_apart(clips))
    path, root = writable(name) or "data", audio_root or location
    return Source(writable(spec), path, "", writable(split), language, root, location, False, lambda: clips)


def writable(name: str) -> str:
    """A file's name as text: bytes in it that are not UTF-8 are shown as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(columns: Iterable[str]) -> str:
    """Names of columns for an error, which stays short."""
    names = ", ".join(map(str, columns))
    return names if len(names) <= 200 else f"{names[:200]}..."


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

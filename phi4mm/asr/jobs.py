"""From inputs to outputs: each input, or each channel of it, transcribed together with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phi4mm.asr.files import STANDARD_INPUT, Input, readable
from phi4mm.asr.outputs import FileOutput, FormatOutput, JsonLineOutput, LineOutput, Output
from phi4mm.asr.parser import PROGRAM
from phi4mm.asr.progress import Progress
from phi4mm.cli import report
from phi4mm.errors import AudioReadError, Phi4MMError
from phi4mm.interrupts import printable
from phi4mm.transcription.writers import Lines, writers
from phi4mm.types import Segment, Transcript

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM
    from phi4mm.diarization.diarizer import Diarizer
    from phi4mm.diarization.speakers import Diarization
    from phi4mm.transcription.transcriber import Transcription


@dataclass(frozen=True)
class JobOptions:
    """Which channels are transcribed, and what becomes of the transcripts.

    Attributes:
        channel: "mix", "left", "right" or "each".
        formats: that were asked for; none: text.
        folder: of the files to write; ``None`` for standard output.
        lines: of subtitles.
        skip_existing: leave out what has all its files.
        json: one JSON object a line.
        stream: print words as they are decoded.
        named: whether lines begin with the name of their input.
        several: whether there may be several transcripts, so that one that fails keeps its place.
        quiet: no progress.
        diarize: whether speakers are told apart.
    """

    channel: Literal["mix", "left", "right", "each"] = "mix"
    formats: Sequence[str] = ()
    folder: Path | None = None
    lines: Lines = field(default_factory=Lines)
    skip_existing: bool = False
    json: bool = False
    stream: bool = False
    named: bool = False
    several: bool = False
    quiet: bool = False
    diarize: bool = False

    def files(self, item: Input, label: str) -> list[tuple[str, Path]]:
        """Format and path of the files of an input, or of one channel of it."""
        if self.folder is None:
            return []
        name = ".".join(filter(None, (str(item.output), label)))
        return [(extension, self.folder / f"{name}.{extension}") for extension in self.formats or ("txt",)]

    def outputs(self, item: Input, label: str) -> list[Output]:
        """Where its transcript goes."""
        name = printable(" ".join(filter(None, (item.path, label))))
        prefix = f"{name}: " if self.named else ""
        if self.folder is not None:
            return [
                FileOutput(writer, path)
                for extension, path in self.files(item, label)
                for writer in writers((extension,), self.lines)
            ]
        if self.json:
            return [JsonLineOutput({"audio_filepath": item.path, **({"channel": label} if label else {})})]
        if self.formats:
            return [FormatOutput(writer, prefix) for writer in writers(self.formats, self.lines)]
        return [LineOutput(prefix, always=self.several)]

    @property
    def can_try_again(self) -> bool:
        """Whether nothing of a transcript is out before its end."""
        return self.folder is not None or self.json


@dataclass(frozen=True)
class Job:
    """One input, or one channel of it.

    Attributes:
        item: as it was named.
        label: of the channel, where each is on its own.
        outputs: where its segments go.
        run: its transcription.
        reported: whether what is wrong with it was reported before.
        speakers: who speaks when, if that was asked for.
    """

    item: Input
    label: str
    outputs: Sequence[Output]
    run: Transcription
    reported: bool = False
    speakers: Diarization | None = None

    def segments(self, segment: Segment) -> list[Segment]:
        """A segment, divided by speakers if those were asked for."""
        return [segment] if self.speakers is None else self.speakers.attributed(segment)

    @property
    def name(self) -> str:
        name = "standard input" if self.item.path == STANDARD_INPUT else self.item.path
        return " ".join(filter(None, (name, self.label)))

    def end(self, transcript: Transcript) -> list[str]:
        """End its outputs; what is wrong with those that cannot be written."""
        errors = []
        for output in self.outputs:
            try:
                output.end(transcript)
            except OSError as error:
                errors.append(str(error))
        return errors

    def cut(self, segments: Sequence[Segment], error: str | None) -> list[str]:
        """End its outputs before its audio has ended, and say what they have."""
        transcript = Transcript.of(segments, self.run.duration)
        places, said = [], []
        for output in self.outputs:
            try:
                places.append(output.cut(transcript, error))
            except OSError as failure:
                said.append(str(failure))
        if segments and any(places):
            kept = " and ".join(dict.fromkeys(filter(None, places)))
            said.insert(0, f"{self.name} is partial: {segments[-1].end:.1f} s of it are {kept}")
        return said


def transcribe(
    model: Phi4MM,
    inputs: Sequence[Input],
    options: JobOptions,
    speech: Mapping[str, Any],
    bad: Mapping[int, Exception],
) -> int:
    """Transcribe all inputs; what went wrong is reported at the end, or at Ctrl-C.

    Args:
        speech: arguments of ``Phi4MM.transcribe_stream``, but for the channel.
        bad: index -> what is wrong with an input, which was reported.

    Returns:
        How many failed.
    """
    failures: list[str] = []
    paths = [item.path for item in inputs]
    on_standard_output = options.folder is None
    each = options.channel == "each"
    diarizer = _diarizer() if options.diarize else None
    try:
        with Progress(paths, each_channel=each, quiet=options.quiet, prints=on_standard_output) as progress:
            jobs = _jobs(model, inputs, options, speech, bad, diarizer)
            if options.stream:
                _print_words(jobs, failures)
            else:
                again = _write_transcripts(jobs, progress, failures, options.can_try_again)
                _write_transcripts(_again(model, again, options, speech, diarizer), progress, failures, False)
            return len(bad) + len(failures)
    finally:
        if diarizer is not None:
            diarizer.close()
        for failure in failures:
            report(PROGRAM, failure)


def give_up(inputs: Sequence[Input], bad: Mapping[int, Exception], options: JobOptions) -> None:
    """Keep the places of inputs of which none can be read."""
    for number, item in enumerate(inputs):
        for output in options.outputs(item, ""):
            output.cut(Transcript.of((), 0.0), str(bad[number]))


def _jobs(
    model: Phi4MM,
    inputs: Sequence[Input],
    options: JobOptions,
    speech: Mapping[str, Any],
    bad: Mapping[int, Exception],
    diarizer: Diarizer | None,
) -> Iterator[Job]:
    """What is to be transcribed, begun when it is asked for."""
    for number, item in enumerate(inputs):
        error: Exception | None = bad.get(number)
        channels: list[tuple[int | None, str]] = [(None, "")]
        with ExitStack() as stack:
            if error is None:
                try:
                    opened = stack.enter_context(
                        readable(item.path, often=options.channel == "each" or options.diarize)
                    )
                    channels = _channels(opened, options.channel, speech.get("track"))
                except (Phi4MMError, OSError) as found:
                    error = found
            for channel, label in channels:
                files = options.files(item, label)
                if options.skip_existing and all(path.exists() for _, path in files):
                    continue
                speakers, problem = None, error
                if diarizer is not None and problem is None:
                    try:
                        speakers = diarizer(opened(), channel=channel, track=speech.get("track"))
                    except (Phi4MMError, OSError) as found:
                        problem = found
                audio = opened() if problem is None else _failing(problem)
                run = model.transcribe_stream(audio, **{**speech, "channel": channel})
                yield Job(item, label, options.outputs(item, label), run, number in bad, speakers)


def _again(
    model: Phi4MM, jobs: Sequence[Job], options: JobOptions, speech: Mapping[str, Any], diarizer: Diarizer | None
) -> Iterator[Job]:
    """Inputs whose reading failed part of the way, once more from their start."""
    for item in dict.fromkeys(job.item for job in jobs):
        labels = {job.label for job in jobs if job.item == item}
        for job in _jobs(model, [item], replace(options, skip_existing=False), speech, {}, diarizer):
            if job.label in labels:
                yield job


def _diarizer() -> Diarizer:
    from phi4mm.diarization.diarizer import Diarizer

    return Diarizer()


def _failing(error: Exception) -> Iterator[Any]:
    """Audio that cannot be read."""
    raise error
    yield


def _channels(opened: Callable[[], Any], wanted: str, track: int | None) -> list[tuple[int | None, str]]:
    """The channels to transcribe and what their outputs are called."""
    from phi4mm.inputs.audio import num_channels

    if wanted != "each":
        return [({"mix": None, "left": 0, "right": 1}[wanted], "")]
    count = num_channels(opened(), track=track)
    return [(number, ("left", "right")[number] if count == 2 else str(number + 1)) for number in range(count)]


def _print_words(jobs: Iterator[Job], failures: list[str]) -> None:
    """Each input's words as they are decoded."""
    empty = Transcript.of((), 0.0)
    for job in jobs:
        (output,) = job.outputs
        assert isinstance(output, LineOutput)
        try:
            for part in job.run.words():
                output.part(part)
        except (Phi4MMError, OSError) as error:
            output.cut(empty, str(error))
            if not job.reported:
                failures.append(str(error))
        except KeyboardInterrupt as interrupt:
            if output.cut(empty, None):
                interrupt.add_note(f"the line of {job.name} is partial")
            raise
        else:
            output.end(empty)


def _write_transcripts(jobs: Iterator[Job], progress: Progress, failures: list[str], try_again: bool) -> list[Job]:
    """Each input's segments as they come; inputs share batches.

    Returns:
        Those to be tried again, where ``try_again``.
    """
    from phi4mm.transcription.transcriber import together

    begun: dict[Transcription, Job] = {}
    segments: dict[Transcription, list[Segment]] = {}
    again: list[Job] = []

    def runs() -> Iterator[Transcription]:
        for job in jobs:
            begun[job.run], segments[job.run] = job, []
            yield job.run

    try:
        for run, event in together(runs()):
            job = begun[run]
            progress.at(job.name, run.duration)
            if isinstance(event, Segment):
                for segment in job.segments(event):
                    segments[run].append(segment)
                    for output in job.outputs:
                        output.add(segment)
                continue
            if event.failure is None:
                failures += job.end(Transcript.of(segments[run], run.duration))
            elif isinstance(event.failure, AudioReadError) and try_again:
                again.append(job)
            else:
                error = str(event.failure)
                said = job.cut(segments[run], error)
                if not job.reported:
                    failures.append("; ".join([error, *said]))
            del begun[run], segments[run]
    except KeyboardInterrupt as interrupt:
        for run, job in begun.items():
            for note in job.cut(segments[run], None):
                interrupt.add_note(note)
        raise
    return again

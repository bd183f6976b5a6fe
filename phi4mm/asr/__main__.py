"""``python -m phi4mm.asr FILE...``: what is said in each file, on standard output or in files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi4mm.asr.files import Input, duplicates, find_inputs, readable
from phi4mm.asr.parser import PROGRAM, make_parser, parse
from phi4mm.asr.progress import Progress
from phi4mm.asr.writers import Lines, Writer, writers
from phi4mm.cli import exit_code, load_model, prepare_environment, report
from phi4mm.errors import Phi4MMError, PromptError
from phi4mm.types import Request, Segment, Transcript

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM
    from phi4mm.transcription.transcriber import Transcription


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    prepare_environment()
    parser = make_parser()
    options = parse(parser, sys.argv[1:] if arguments is None else arguments)
    return exit_code(PROGRAM, lambda: _run(parser, options))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.completion:
        return _print_completion(parser, options.completion)
    inputs = find_inputs(options.files, recursive=options.recursive)
    speech = _speech_options(options)
    _check_usage(parser, options, speech, inputs)
    with load_model(options) as model:
        if options.mic:
            _listen(model, speech)
            return 0
        return _transcribe(model, inputs, options, speech)


def _transcribe(model: Phi4MM, inputs: Sequence[Input], options: argparse.Namespace, speech: dict[str, Any]) -> int:
    """Transcribe all inputs and return the exit code; what went wrong is reported at the end, or at Ctrl-C."""
    failures: list[Exception] = []
    paths = [item.path for item in inputs]
    try:
        with Progress(paths, each_channel=options.channel == "each", quiet=options.quiet) as progress:
            jobs = _jobs(model, inputs, options, speech, failures)
            if options.stream:
                _print_words(jobs, failures)
            else:
                _write_transcripts(jobs, options, progress, failures)
    finally:
        for failure in failures:
            report(PROGRAM, failure)
    return int(bool(failures))


def _check_usage(
    parser: argparse.ArgumentParser, options: argparse.Namespace, speech: dict[str, Any], inputs: Sequence[Input]
) -> None:
    """End with exit code 2 where options are wrong or do not go together."""
    from phi4mm.inputs.prompt import speech_prompt
    from phi4mm.transcription.options import SpeechOptions

    if options.mic == bool(options.files):
        parser.error("name files, or use --mic" if not options.mic else "--mic takes no files")
    if not (inputs or options.mic):
        parser.error(f"no audio files in {', '.join(options.files)}; try --recursive")
    if sum((options.format is not None or options.output_dir is not None, options.json, options.stream)) > 1:
        parser.error("--json, --stream and --format or --output-dir exclude one another")
    if options.format == "all" and options.output_dir is None:
        parser.error("--format all needs --output-dir")
    if options.skip_existing and options.output_dir is None:
        parser.error("--skip-existing needs --output-dir")
    if options.line_width < 0 or options.line_count < 1:
        parser.error("--line-width is 0 or more, --line-count 1 or more")
    if options.output_dir is not None and (repeated := duplicates(inputs)):
        parser.error(f"outputs of {', '.join(repeated)} would overwrite those of another input; use two commands")
    try:
        prompt = {name: speech[name] for name in ("prompt", "hotwords")}
        text = speech_prompt(speech["task"], speech["to"], **prompt)
        others = {name: value for name, value in speech.items() if name not in ("task", "to", *prompt)}
        _, decoding = SpeechOptions.split(others, task=speech["task"])
        Request.make(text, **decoding)
    except PromptError as error:
        parser.error(str(error))


def _speech_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``Phi4MM.transcribe_stream``, but for the channel; those not given are left to it."""
    task = options.task or ("transcribe" if options.to is None else "translate")
    speech = {
        "task": task,
        "to": options.to,
        "prompt": options.prompt,
        "hotwords": [word.strip() for word in (options.hotwords or "").split(",") if word.strip()],
        "vad": not options.no_vad,
        "word_timestamps": options.word_timestamps,
    }
    names = ["max_piece", "min_silence", "vad_threshold", "batch_size", "max_new_tokens", "temperature", "seed"]
    names += ["temperature_increment", "compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"]
    return {**speech, **{name: getattr(options, name) for name in names if getattr(options, name) is not None}}


@dataclass(frozen=True)
class Job:
    """One input, or one channel of it.

    Attributes:
        item: as it was named.
        path: where it is read from.
        label: of the channel, where each is on its own.
        outputs: the files to write.
        run: its transcription.
    """

    item: Input
    path: str
    label: str
    outputs: Sequence[tuple[Writer, Path]]
    run: Transcription

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.item.path, self.label)))

    def failed(self, error: Exception) -> Exception:
        """The error, which names the input as it was named."""
        return type(error)(str(error).replace(self.path, "standard input")) if self.path != self.item.path else error


def _jobs(
    model: Phi4MM,
    inputs: Sequence[Input],
    options: argparse.Namespace,
    speech: dict[str, Any],
    failures: list[Exception],
) -> Iterator[Job]:
    """What is to be transcribed, begun when it is asked for."""
    for item in inputs:
        try:
            with readable(item.path) as path:
                for channel, label in _channels(path, options.channel):
                    outputs = _outputs(item, label, options)
                    if not (options.skip_existing and all(output.exists() for _, output in outputs)):
                        run = model.transcribe_stream(path, channel=channel, **speech)
                        yield Job(item, path, label, outputs, run)
        except (Phi4MMError, OSError) as error:
            failures.append(error)


def _print_words(jobs: Iterator[Job], failures: list[Exception]) -> None:
    """Each input's words as they are decoded."""
    for job in jobs:
        try:
            for part in job.run.words():
                print(part, end="", flush=True)
            print(flush=True)
        except BrokenPipeError:
            raise
        except (Phi4MMError, OSError) as error:
            failures.append(job.failed(error))


def _write_transcripts(
    jobs: Iterator[Job], options: argparse.Namespace, progress: Progress, failures: list[Exception]
) -> None:
    """Each input's transcript when it is whole; inputs share batches."""
    from phi4mm.transcription.transcriber import together

    begun: dict[Transcription, Job] = {}
    segments: dict[Transcription, list[Segment]] = {}

    def runs() -> Iterator[Transcription]:
        for job in jobs:
            begun[job.run], segments[job.run] = job, []
            yield job.run

    for run, event in together(runs()):
        job = begun[run]
        progress.at(job.name, run.duration)
        if isinstance(event, Segment):
            segments[run].append(event)
            continue
        if event.failure is not None:
            failures.append(job.failed(event.failure))
        else:
            try:
                _write(job, Transcript.of(segments[run], run.duration), options, progress)
            except BrokenPipeError:
                raise
            except OSError as error:
                failures.append(error)
        del begun[run], segments[run]


def _write(job: Job, transcript: Transcript, options: argparse.Namespace, progress: Progress) -> None:
    """One transcript, to files or to standard output."""
    for writer, output in job.outputs:
        writer.write(transcript, output)
    if options.json:
        channel = {"channel": job.label} if job.label else {}
        named = {"audio_filepath": job.item.path, **channel, **transcript.to_dict()}
        progress.print(json.dumps(named, ensure_ascii=False))
    elif options.format and not job.outputs:
        (writer,) = writers(options.format, _lines(options))
        progress.print(writer.render(transcript).removesuffix("\n"))
    elif not job.outputs:
        progress.print(transcript.text)


def _channels(path: str, wanted: str) -> list[tuple[int | None, str]]:
    """The channels to transcribe and what their outputs are called."""
    from phi4mm.inputs.audio import num_channels

    if wanted != "each":
        return [({"mix": None, "left": 0, "right": 1}[wanted], "")]
    count = num_channels(path)
    return [(number, ("left", "right")[number] if count == 2 else str(number + 1)) for number in range(count)]


def _outputs(item: Input, label: str, options: argparse.Namespace) -> list[tuple[Writer, Path]]:
    """The files to write: none without an output folder."""
    if options.output_dir is None:
        return []
    name = ".".join(filter(None, (str(item.output), label)))
    folder = Path(options.output_dir)
    chosen = writers(options.format or "txt", _lines(options))
    return [(writer, folder / f"{name}.{writer.extension}") for writer in chosen]


def _lines(options: argparse.Namespace) -> Lines:
    return Lines(options.line_width, options.line_count)


def _listen(model: Phi4MM, speech: dict[str, Any]) -> None:
    """Print each piece that is spoken, when a pause ends it."""
    from phi4mm.asr.microphone import microphone

    for segment in model.transcribe_stream(microphone(), **{**speech, "batch_size": 1}):
        print(segment.text, flush=True)


def _print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        report(PROGRAM, Phi4MMError("completion scripts are made by shtab: pip install 'phi4mm[completion]'"))
        return 1
    print(shtab.complete(parser, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())

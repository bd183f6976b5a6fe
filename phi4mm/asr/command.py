"""The ASR command: options, inputs and outputs are checked, then the model is loaded and the inputs transcribed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phi4mm.asr.files import STANDARD_INPUT, Input, check_folder, duplicates, find_inputs, unreadable
from phi4mm.asr.jobs import JobOptions, give_up, transcribe
from phi4mm.asr.parser import COMMAND, PROGRAM, formats, make_parser, parse
from phi4mm.cli import load_model, prepare_environment, report, write_out
from phi4mm.errors import Phi4MMError, PromptError, install_hint
from phi4mm.transcription.writers import Lines
from phi4mm.types import Request

BUNDLED = (
    "the bundled checkpoint transcribes English digits, letters, numbers, dates and short commands alone; for other "
    "speech: --model microsoft/Phi-4-multimodal-instruct"
)


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, or 1 where an input failed.

    Raises:
        SystemExit: the usage is wrong (2), or help was asked for (0).
        Phi4MMError: nothing can be done: the output folder, the microphone or the model is not available.
    """
    prepare_environment()
    parser = make_parser()
    options = parse(parser, arguments)
    if options.completion:
        return _print_completion(options.completion)
    inputs = find_inputs(options.files, recursive=options.recursive)
    if options.output_dir is not None:  # where a second transcript would replace the first
        inputs = list(dict.fromkeys(inputs))
    speech = _speech_options(options)
    job_options = _job_options(parser, options, speech, inputs)
    if options.diarize:
        from phi4mm.diarization.diarizer import check_installed

        check_installed()
    if options.output_dir is not None:
        check_folder(Path(options.output_dir))
    if options.mic:
        return _listen(options, speech)
    bad = unreadable(inputs)
    for error in bad.values():
        report(PROGRAM, error)
    if len(bad) == len(inputs):
        give_up(inputs, bad, job_options)
        return 1
    with load_model(options) as model:
        _say_what_it_can(options)
        failed = transcribe(model, inputs, job_options, speech, bad)
    return int(bool(failed))


def _job_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, speech: dict[str, Any], inputs: Sequence[Input]
) -> JobOptions:
    """How the inputs are transcribed; ends with exit code 2 where options are wrong or do not go together."""
    from phi4mm.inputs.prompt import speech_prompt
    from phi4mm.transcription.options import SpeechOptions

    chosen = formats(options.format)
    several = len(inputs) > 1 or options.channel == "each"
    if options.mic == bool(options.files):
        parser.error("name files, or use --mic" if not options.mic else "--mic takes no files")
    if not (inputs or options.mic):
        parser.error(f"no audio files in {', '.join(options.files)}; try --recursive")
    if sum(item.path == STANDARD_INPUT for item in inputs) > 1:
        parser.error("- is standard input, which can be read once")
    if sum((bool(chosen) or options.output_dir is not None, options.json, options.stream)) > 1:
        parser.error("--json, --stream and --format or --output-dir exclude one another")
    if options.output_dir == "":
        parser.error("--output-dir is empty; name a folder, . for this one")
    if len(chosen) > 1 and options.output_dir is None:
        parser.error("several formats need --output-dir FOLDER")
    if several and set(chosen) - {"txt"} and options.output_dir is None:
        parser.error(f"--format {chosen[0]} of several transcripts needs --output-dir: one file each; or use --json")
    if options.skip_existing and options.output_dir is None:
        parser.error("--skip-existing needs --output-dir")
    if options.diarize and (options.stream or options.mic):
        parser.error("--diarize needs whole files: it does not go with --stream or --mic")
    if options.diarize and speech["task"] != "transcribe":
        parser.error("--diarize is for the task transcribe")
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
    return JobOptions(
        channel=options.channel,
        formats=chosen,
        folder=None if options.output_dir is None else Path(options.output_dir),
        lines=Lines(options.line_width, options.line_count),
        skip_existing=options.skip_existing,
        json=options.json,
        stream=options.stream,
        named=several and not options.no_filename,
        several=several,
        quiet=options.quiet,
        diarize=options.diarize,
    )


def _speech_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``Phi4MM.transcribe_stream``, but for the channel; those not given are left to it."""
    task = options.task or ("transcribe" if options.to is None else "translate")
    hotwords = ",".join(options.hotwords or ()).split(",")
    speech = {
        "task": task,
        "to": options.to,
        "prompt": options.prompt,
        "hotwords": [word.strip() for word in hotwords if word.strip()],
        "vad": not options.no_vad,
        "word_timestamps": options.word_timestamps or options.diarize,  # at which a segment is divided by speakers
    }
    names = [
        "track",
        "clip",
        "max_piece",
        "min_silence",
        "vad_threshold",
        "batch_size",
        "max_new_tokens",
        "temperature",
        "seed",
    ]
    names += ["temperature_increment", "compression_ratio_threshold", "logprob_threshold", "no_speech_threshold"]
    return {**speech, **{name: getattr(options, name) for name in names if getattr(options, name) is not None}}


def _listen(options: argparse.Namespace, speech: dict[str, Any]) -> int:
    """Print each piece that is spoken, when a pause ends it."""
    from phi4mm.asr.microphone import microphone, sound_library

    sound_library()
    with load_model(options) as model:
        _say_what_it_can(options)
        for segment in model.transcribe_stream(microphone(), **{**speech, "batch_size": 1}):
            write_out(f"{segment.text}\n")
    return 0


def _say_what_it_can(options: argparse.Namespace) -> None:
    if options.model is None and not options.quiet:
        report(PROGRAM, BUNDLED)


def _print_completion(shell: str) -> int:
    """A script for the console script alone: ``python`` completes what it did before."""
    try:
        import shtab
    except ImportError as error:
        raise Phi4MMError(f"completion scripts are made by shtab: {install_hint('completion')}") from error
    write_out(shtab.complete(make_parser(COMMAND), shell) + "\n")
    return 0

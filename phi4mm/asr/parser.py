"""The options of ``python -m phi4mm.asr``: on the command line, in the environment, and in docs/asr.md."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from phi4mm import __version__
from phi4mm.cli import add_model_options, program_name
from phi4mm.errors import PromptError
from phi4mm.inputs.clip import Clip
from phi4mm.transcription.writers import FORMATS

PROGRAM = "phi4mm.asr"
COMMAND = "phi4mm-asr"  # its console script
PREFIX = "PHI4MM_ASR_"
TASKS = ("transcribe", "translate", "transcribe_translate", "summarize")
CHANNELS = ("mix", "left", "right", "each")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def make_parser(name: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command of that name; by default, of that which was started."""
    name = name or program_name(PROGRAM)
    parser = argparse.ArgumentParser(
        prog=name,
        usage=f"{name} [OPTION ...] FILE ...",
        description="Transcribe audio and video files, one line each, in the order given.",
        epilog=f"Every option is also an environment variable: --max-piece 20 is {PREFIX}MAX_PIECE=20. "
        "Exit code: 0 all done, 1 some files failed (listed on standard error), 2 usage, 130 interrupted.",
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="an audio or video file (wav, flac, mp3, ogg, opus, m4a, mp4, mkv, webm ...), a folder, a quoted glob, "
        "or - for standard input",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    _add_input(parser)
    add_model_options(parser)
    _add_task(parser)
    _add_output(parser)
    _add_speech(parser)
    _add_decoding(parser)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument("--recursive", action="store_true", help="take the folders in folders too")
    group.add_argument(
        "--channel", default="mix", choices=CHANNELS, help="mix: all together (default); each: one after another"
    )
    group.add_argument(
        "--track",
        type=_track,
        metavar="N",
        help="the sound track of a film, counted from 1 (default: the one that players take)",
    )
    group.add_argument(
        "--clip",
        type=_clip,
        metavar="START-END",
        help="this part of each file alone, in seconds or MM:SS: 1.5-3, 1:30-, -10; times stay those of the file",
    )
    group.add_argument(
        "--mic", action="store_true", help="transcribe what is spoken, until Ctrl-C (pip install '.[mic]')"
    )


def _add_task(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("task")
    group.add_argument("--task", choices=TASKS, help="what to do (default: transcribe; with --to translate)")
    group.add_argument("--to", metavar="LANGUAGE", help='what to translate to, in English, such as "German"')
    group.add_argument("--prompt", help="your own instruction, instead of the task's")
    group.add_argument(
        "--hotwords", action="append", metavar="WORDS", help="names and terms that may occur, separated by commas"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        action="append",
        type=_known_formats,
        metavar="FORMATS",
        help=f"{', '.join(FORMATS)}, several with commas between, or all (default: txt); without --output-dir printed",
    )
    group.add_argument("--output-dir", metavar="DIR", help="write a file per input and format into this folder")
    group.add_argument("--skip-existing", action="store_true", help="leave out inputs whose outputs are all there")
    group.add_argument(
        "--word-timestamps", action="store_true", help="estimate the times of words, for JSON and subtitles"
    )
    group.add_argument(
        "--diarize",
        action="store_true",
        help="name the speakers: A, B, ... before their words (pip install '.[diarize]')",
    )
    group.add_argument("--line-width", type=int, default=42, metavar="N", help="of subtitles; 0: any (default: 42)")
    group.add_argument("--line-count", type=int, default=2, metavar="N", help="lines of a subtitle (default: 2)")
    group.add_argument(
        "--json", action="store_true", help="one JSON object a line: audio_filepath, text, segments, duration"
    )
    group.add_argument(
        "--no-filename", action="store_true", help="no file name before each line (several files have one)"
    )
    group.add_argument("--stream", action="store_true", help="print words as they are decoded (nothing is retried)")
    group.add_argument("--quiet", action="store_true", help="no progress, which is shown only on a terminal anyway")
    group.add_argument(
        "--completion", choices=("bash", "zsh", "tcsh"), help="print a completion script (pip install '.[completion]')"
    )


def _add_speech(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("finding speech")
    group.add_argument(
        "--max-piece",
        type=float,
        metavar="SECONDS",
        help="cut longer speech (default: what the checkpoint was trained on)",
    )
    group.add_argument("--min-silence", type=float, metavar="SECONDS", help="a pause that ends a piece (default: 1)")
    group.add_argument("--vad-threshold", type=float, default=0.5, metavar="P", help="lower finds more (default: 0.5)")
    group.add_argument("--no-vad", action="store_true", help="transcribe everything, silence and noise too")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="pieces decoded together (default: 16)")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="per piece (default: 512)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument("--seed", type=int, metavar="N", help="for a repeatable result at a temperature over 0")
    group = parser.add_argument_group("decoding again what went wrong")
    group.add_argument(
        "--temperature-increment",
        type=float,
        default=0.2,
        metavar="T",
        help="of each retry, up to 1; 0: none (default: 0.2)",
    )
    group.add_argument(
        "--compression-ratio-threshold",
        type=float,
        default=2.4,
        metavar="R",
        help="text that zlib shortens more is a loop (default: 2.4)",
    )
    group.add_argument(
        "--logprob-threshold",
        type=float,
        default=-1.0,
        metavar="L",
        help="mean log-probability of tokens below it is a failure (default: -1)",
    )
    group.add_argument(
        "--no-speech-threshold",
        type=float,
        default=0.6,
        metavar="P",
        help="a failure with less than 1 - P of speech is dropped (default: 0.6)",
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> argparse.Namespace:
    """The options of a command line; what it does not give is taken from the environment, then from the defaults."""
    given: list[str] = []
    alone = vars(parser.parse_args(arguments))
    for action in parser._actions:
        name = variable(action)
        if name is None or name not in environment:
            continue
        if isinstance(action, argparse._AppendAction) and alone[action.dest] is not None:
            continue  # the command line's would be added to it
        value, option = environment[name], action.option_strings[-1]
        if action.nargs != 0:
            given.append(f"{option}={value}")
        elif value.lower() in _TRUE:
            given.append(option)
        elif value.lower() not in _FALSE:
            parser.error(f"{name} is {value!r}; expected 1 or 0")
    return parser.parse_args([*given, *arguments])


def variable(action: argparse.Action) -> str | None:
    """The environment variable of an option; ``None`` for positional arguments, ``--help`` and ``--version``."""
    if not action.option_strings or action.dest in ("help", "version"):
        return None
    return PREFIX + action.dest.upper()


def formats(given: Sequence[Sequence[str]] | None) -> tuple[str, ...]:
    """The formats that were asked for, each once, in the order of ``FORMATS``; none by default."""
    asked = {name for names in given or () for name in names}
    return tuple(name for name in FORMATS if name in asked or "all" in asked)


def _track(text: str) -> int:
    """A track's number, from 0, as ``Phi4MM.transcribe`` counts them."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a track's number: 1 or more")
    return int(text) - 1


def _clip(text: str) -> str:
    try:
        Clip.parse(text)
    except PromptError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _known_formats(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*FORMATS, "all"):
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(FORMATS)}, all")
    return names

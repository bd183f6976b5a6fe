"""``python -m phi4mm "question" --image FILE --audio FILE``: the answer, streamed to standard output."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi4mm import __version__
from phi4mm.cli import (
    add_model_options,
    load_model,
    prepare_environment,
    program_name,
    report,
    write_out,
)
from phi4mm.content import placeholders
from phi4mm.errors import PromptError
from phi4mm.inputs.clip import Clip
from phi4mm.interrupts import exits_at_once
from phi4mm.types import OutputFormat, Request

if TYPE_CHECKING:
    from phi4mm.api import Phi4MM

PROGRAM = "phi4mm"
STANDARD_INPUT = "-"
BUNDLED = (
    "the bundled checkpoint is small: it transcribes spoken letters, numbers, dates and short commands, answers "
    "questions about pictures of simple shapes, typed or spoken, counts them, and reads short printed numbers and "
    "words; what else is asked gets an answer of these kinds; --model names another"
)
_FILE_NAME = re.compile(r"\S*[/\\]\S*|.*\.\w{1,5}", re.DOTALL)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name(PROGRAM),
        usage="%(prog)s [OPTION ...] [QUESTION]",
        description="Ask about text, images and audio; the answer is printed as it comes.",
        epilog="To transcribe files, see python -m phi4mm.asr --help. Exit code: 0 answered, 1 failed, 2 usage, "
        "130 interrupted.",
    )
    parser.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="may place the media with <|image_1|>, <|audio_1|>; - reads it from standard input; may be left out where "
        "it is spoken in --audio",
    )
    group = parser.add_argument_group("input")
    group.add_argument(
        "--image", action="append", nargs="+", default=[], metavar="FILE", help="images; - is one on standard input"
    )
    group.add_argument("--audio", action="append", nargs="+", default=[], metavar="FILE", help="audio or video files")
    group.add_argument(
        "--clip", metavar="START-END", help="take this part of each audio, in seconds or MM:SS: 1.5-3, 1:30-, -10"
    )
    group.add_argument("--system", help="the system message")
    add_model_options(parser)
    group = parser.add_argument_group("adapter")
    group.add_argument(
        "--adapter", default="auto", metavar="NAME", help="auto: by the media (default); none: the bare decoder; a name"
    )
    group = parser.add_argument_group("decoding")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default: 512")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1")
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="0 for all (default: 0)")
    group.add_argument("--seed", type=int, metavar="N", help="for a repeatable answer at a temperature over 0")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before it; may be repeated"
    )
    group.add_argument(
        "--json-schema", metavar="FILE|TEXT", help="answer in JSON that fits this schema, a file or the text itself"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="one JSON object: text, token_ids, finish_reason, usage, ..."
    )
    group.add_argument("--quiet", action="store_true", help="no notice of what the bundled checkpoint can do")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def run(arguments: Sequence[str] | None) -> int:
    """Run the command and return its exit code."""
    prepare_environment()
    parser = make_parser()
    options = parser.parse_args(arguments)
    _find_question(options)
    return _run(parser, options)


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        read_from_input = _read_standard_input(options)
        text = _question(options, read_from_input)
        decoding = {
            name: getattr(options, name)
            for name in ("system", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")
        }
        if options.json_schema is not None:
            decoding["output"] = OutputFormat(json_schema=_schema(options.json_schema))
        clip = Clip() if options.clip is None else Clip.parse(options.clip)
        if options.clip is not None and not options.audio:
            raise PromptError("--clip takes a part of --audio; name one")
        adapter = None if options.adapter == "none" else options.adapter
        Request.make(text or "-", adapter=adapter, **decoding)  # before anything is read
    except PromptError as error:
        parser.error(str(error))
    request = Request.make(text, adapter=adapter, **decoding, **_media(options, clip, read_from_input))
    return _answer(request, options)


def _find_question(options: argparse.Namespace) -> None:
    """``--image a.png b.png QUESTION`` gives the option the question too: its last value, where that is no file."""
    for values in (*options.image, *options.audio):
        is_file = _FILE_NAME.fullmatch(values[-1]) or os.path.exists(values[-1])
        if options.question is None and len(values) > 1 and not is_file:
            options.question = values.pop()
    options.image, options.audio = ([*chain(*groups)] for groups in (options.image, options.audio))


def _read_standard_input(options: argparse.Namespace) -> bytes:
    """What stands for "-", and for the question where nothing at all is asked.

    Raises:
        PromptError: several inputs are to be read from it, or it cannot be read.
    """
    named = [options.question, *options.image, *options.audio].count(STANDARD_INPUT)
    if named > 1:
        raise PromptError("standard input (-) is one input; name it once")
    nothing = options.question is None and not (options.image or options.audio)
    if nothing and sys.stdin is not None and not sys.stdin.isatty():
        options.question = STANDARD_INPUT
        named = 1
    try:
        return sys.stdin.buffer.read() if named and sys.stdin is not None else b""
    except OSError as error:
        raise PromptError(f"standard input cannot be read ({error.strerror or error}); ask something else") from error


def _question(options: argparse.Namespace, read: bytes) -> str:
    """The question as it is asked.

    Raises:
        PromptError: it is blank, not UTF-8, or places media that are not given.
    """
    question = options.question
    if question == STANDARD_INPUT:
        try:
            question = read.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"the question on standard input is not UTF-8 ({error.reason}); convert it") from error
    if question is None and not (options.image or options.audio):
        raise PromptError("ask something: a question, --image or --audio")
    if question is not None and not question.strip():
        raise PromptError("the question is blank; expected a text, or none and --image or --audio")
    for kind, name in placeholders(question or ""):
        if not getattr(options, kind):
            raise PromptError(f"the question places {name:.40}, but there is no {kind}; add --{kind} FILE")
    return question or ""


def _media(options: argparse.Namespace, clip: Clip, read: bytes) -> dict[str, list[Any]]:
    """Every image and audio, decoded, so that what is wrong with one shows before the model is loaded.

    Raises:
        Phi4MMError: one cannot be read.
    """
    if not (options.image or options.audio):
        return {}
    with exits_at_once():
        from phi4mm.inputs.audio import load_audio
        from phi4mm.inputs.image import load_image

    def source(name: str) -> dict[str, Any]:
        return {"source": read, "name": "standard input"} if name == STANDARD_INPUT else {"source": name}

    images = [load_image(**source(name)) for name in options.image]
    waveforms = [clip.of(load_audio(**source(name)), name) for name in options.audio]
    return {"images": images, "audios": [(each.samples, each.sampling_rate) for each in waveforms]}


def _schema(text: str) -> Any:
    """The JSON schema of a file or of the text itself."""
    where = "--json-schema"
    try:
        if not text.lstrip().startswith("{"):
            where = f"--json-schema {text:.80}"
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise PromptError(f"{where}: cannot be read ({error.strerror}); expected a file or a JSON schema") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON ({error}); expected a JSON schema") from error


def _answer(request: Request, options: argparse.Namespace) -> int:
    with _loaded(options) as model:
        if options.model is None and not options.quiet:
            report(PROGRAM, BUNDLED)
        handle = model.submit(request)
        if options.json:
            write_out(json.dumps(handle.result().to_dict()) + "\n")
            return 0
        for piece in handle:
            write_out(piece)
        write_out("\n")
    return 0


def _loaded(options: argparse.Namespace) -> Phi4MM:
    """The model; what loading warns of is reported in a line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        model = load_model(options)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            report(PROGRAM, str(warning.message))
    return model

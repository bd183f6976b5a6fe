"""``python -m phi4mm "question" --image FILE --audio FILE``: the answer, streamed to standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phi4mm.cli import add_model_options, exit_code, load_model, prepare_environment
from phi4mm.errors import PromptError
from phi4mm.types import OutputFormat, Request

PROGRAM = "phi4mm"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Ask about text, images and audio; the answer is printed as it comes.",
        epilog="To transcribe files, see python -m phi4mm.asr --help. Exit code: 0 answered, 1 failed, 2 usage, "
        "130 interrupted.",
    )
    parser.add_argument("question", nargs="?", default="", help="the question (may be spoken in --audio instead)")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help="an audio file; may be repeated")
    parser.add_argument("--system", help="the system message")
    add_model_options(parser)
    group = parser.add_argument_group("decoding")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="default: 512")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1")
    group.add_argument("--seed", type=int, metavar="N", help="for a repeatable answer at a temperature over 0")
    group.add_argument(
        "--json-schema", metavar="FILE|TEXT", help="answer in JSON that fits this schema, a file or the text itself"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    prepare_environment()
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not (options.question or options.image or options.audio):
        parser.error("ask something: a question, --image or --audio")
    try:
        request = Request.make(
            options.question,
            images=options.image,
            audios=options.audio,
            system=options.system,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            output=None if options.json_schema is None else OutputFormat(json_schema=_schema(options.json_schema)),
        )
    except PromptError as error:
        parser.error(str(error))
    return exit_code(PROGRAM, lambda: _answer(request, options))


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
    with load_model(options) as model:
        for piece in model.submit(request):
            print(piece, end="", flush=True)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m phi4mm.asr FILE...``: what is said in each file, on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from phi4mm.cli import add_model_options, load_model, report
from phi4mm.errors import Phi4MMError

PROGRAM = "phi4mm.asr"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Transcribe audio files (wav, flac, ogg, opus, mp3), one line each, in the order given.",
        epilog="Exit code: 0 all files were transcribed, 1 some failed (told on standard error), 2 usage.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="an audio file")
    add_model_options(parser)
    group = parser.add_argument_group("task")
    group.add_argument("--prompt", help="your own instruction, instead of the task's")
    group.add_argument(
        "--task",
        default="transcribe",
        choices=("transcribe", "translate", "transcribe_translate"),
        help="what to do (default: transcribe)",
    )
    group.add_argument("--to", metavar="LANGUAGE", help='what to translate to, in English, such as "German"')
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="per file (default: 512)")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="one JSON object a line: audio_filepath, text, segments, duration"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if (options.task == "transcribe") != (options.to is None):
        parser.error("--to LANGUAGE goes with --task translate or transcribe_translate, and those need it")
    try:
        model = load_model(options)
    except Phi4MMError as error:
        report(PROGRAM, error)
        return 1
    failed = False
    for file in options.files:
        try:
            transcript = model.transcribe(
                file,
                task=options.task,
                to=options.to,
                prompt=options.prompt,
                max_new_tokens=options.max_new_tokens,
            )
        except Phi4MMError as error:
            report(PROGRAM, error)
            failed = True
            continue
        line = json.dumps({"audio_filepath": file, **transcript.to_dict()}, ensure_ascii=False)
        print(line if options.json else transcript.text, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""The options of ``python -m eval_asr``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval_asr.backends import BACKENDS, DEFAULT_PROMPT
from eval_asr.normalise import SCORINGS
from eval_asr.suites import SUITES


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line; wrong ones end the program, with their usage."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command == "run" and not (options.data or options.suite):
        parser.error("run: name a corpus with --data or --suite")
    if options.command == "run" and options.ray is not None and options.streaming:
        parser.error("run: with --ray leave out --streaming: each worker reads the downloaded set")
    if options.command == "report" and not (options.out or options.markdown or options.picture):
        parser.error("report: name a file to write with --out, --markdown or --picture")
    return options


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval_asr",
        description="Run speech recognisers over corpora and score them as the Open ASR Leaderboard does.",
        epilog="Exit code: 0 done, 1 clips failed or an error (reported in one line), 2 usage, 130 stopped by Ctrl-C.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="recognise corpora; a run that was killed goes on where it was"))
    _add_score(commands.add_parser("score", help="word error rates of results"))
    _add_compare(commands.add_parser("compare", help="two runs on the same clips"))
    _add_report(commands.add_parser("report", help="one HTML page, or markdown, that shows the errors"))
    return parser


def _count(text: str) -> int:
    """The type of an option that is a whole number of 0 or more."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("corpora")
    group.add_argument(
        "--data", action="append", default=[], metavar="SOURCE",
        help="a JSON-lines manifest (audio_filepath, text), a LibriSpeech tree, a folder with metadata.csv, or a data "
        "set of the hub, org/name:config:split; may be given again",
    )  # fmt: skip
    group.add_argument("--suite", action="append", default=[], choices=sorted(SUITES), help="named leaderboard sets")
    group.add_argument("--limit", type=int, metavar="N", help="only N clips of each (default: all)")
    group.add_argument("--seed", type=int, help="with --limit: draw the clips at random (default: the first ones)")
    group.add_argument("--streaming", action="store_true", help="read the hub's data sets while they are downloaded")
    group.add_argument("--language", help="of the speech, as a two-letter code (default: the set's, or en)")
    group = parser.add_argument_group("recogniser")
    group.add_argument("--model", metavar="M", help="a folder or name (default: the backend's own, where it has one)")
    group.add_argument("--backend", default="phi4mm", choices=sorted(BACKENDS), help="what runs it (default: phi4mm)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="precision (default: auto)"
    )
    group.add_argument("--prompt", help=f"the instruction (default: {DEFAULT_PROMPT!r} for the models that need one)")
    group.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of a transcription (default: 512)")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="clips at once (default: 16)")
    group.add_argument(
        "--warmup", type=int, default=2, metavar="N", help="batches off the clock once it is loaded (default: 2)"
    )
    group = parser.add_argument_group("scale-out")
    group.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster, or on one started here: local")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="with --ray: recognisers (default: 1)")
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of results")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scoring", default="classic", choices=SCORINGS, help="the rules (default: classic)")
    parser.add_argument(
        "--leaderboard", type=Path, metavar="DIR",
        help="a clone of github.com/huggingface/open_asr_leaderboard, whose normaliser the rules of 2026 use",
    )  # fmt: skip
    parser.add_argument("--language", help="of the references (default: that of the run, or of the set's name)")


def _add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="DIR", help="a folder of results, or one manifest")
    _add_scoring(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="DIR", help="a folder of results, or one manifest")
    parser.add_argument("after", type=Path, metavar="DIR", help="another")
    parser.add_argument("--clips", type=_count, default=10, metavar="N", help="changed clips to show (default: 10)")
    _add_scoring(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="DIR", help="a folder of results")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML page to write")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a table for a README to write")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a picture to write (.png or .svg)")
    _add_scoring(parser)

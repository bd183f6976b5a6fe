"""``python -m eval_asr run | score | compare | report``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_asr.backends import BACKENDS, DEFAULT_PROMPT, BackendOptions, load_recogniser
from eval_asr.errors import EvalError, ScoringWarning
from eval_asr.normalise import SCORINGS
from eval_asr.recognise import LazyRecogniser
from eval_asr.results import SetName, locked
from eval_asr.run import RunOptions, check_distinct, run_set
from eval_asr.sources import open_source
from eval_asr.suites import SUITES, suite
from phi4mm.cli import prepare_environment
from phi4mm.cli import report as report_error
from phi4mm.errors import Phi4MMError

if TYPE_CHECKING:
    from eval_asr.scale import Cluster

PROGRAM = "eval_asr"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Run speech recognisers over corpora and score them as the Open ASR Leaderboard does.",
        epilog="Exit code: 0 done, 1 an error (reported in one line), 2 usage, 130 stopped by Ctrl-C.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="recognise corpora; a run that was killed goes on where it was"))
    _add_score(commands.add_parser("score", help="word error rates of results"))
    _add_compare(commands.add_parser("compare", help="two runs on the same clips"))
    _add_report(commands.add_parser("report", help="one HTML page, or markdown, that shows the errors"))
    return parser


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
    parser.set_defaults(action=_run)


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
    parser.set_defaults(action=_score)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="DIR", help="a folder of results, or one manifest")
    parser.add_argument("after", type=Path, metavar="DIR", help="another")
    parser.add_argument("--clips", type=int, default=10, metavar="N", help="changed clips to show (default: 10)")
    _add_scoring(parser)
    parser.set_defaults(action=_compare)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="DIR", help="a folder of results")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML page to write")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a table for a README to write")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a picture to write (.png or .svg)")
    _add_scoring(parser)
    parser.set_defaults(action=_report)


def _run(options: argparse.Namespace) -> None:
    from eval_asr.settings import prepare_settings, record_timing

    specs = [*options.data, *(spec for name in options.suite for spec in suite(name))]
    run_options = RunOptions(options.batch_size, options.limit, options.seed, not options.quiet)
    backend = BackendOptions(
        backend=options.backend,
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        prompt=options.prompt,
        max_new_tokens=options.max_new_tokens,
    )
    load = partial(load_recogniser, backend)
    with locked(options.out), _cluster(options) as cluster, LazyRecogniser(load, options.warmup) as recogniser:
        sources = [open_source(spec, streaming=options.streaming, language=options.language) for spec in specs]
        check_distinct(sources)
        for source in sources:
            manifest = options.out / SetName(backend.label, source.path, source.name, source.split).file_name
            prepare_settings(manifest, source, backend, run_options)
            elsewhere = None if cluster is None else cluster.transcriber(load, source.language, options.warmup)
            summary = run_set(recogniser, source, manifest, run_options, elsewhere)
            record_timing(manifest, summary.timing)
            print(f"{manifest}: {summary.sentence()}", flush=True)


def _cluster(options: argparse.Namespace) -> AbstractContextManager[Cluster | None]:
    if options.ray is None:
        return nullcontext()
    try:
        from eval_asr.scale import ray_cluster
    except ImportError as error:
        raise EvalError(f"--ray needs {error.name}, which is not installed; pip install 'phi4mm[ray]'") from error
    return ray_cluster(options.ray, options.workers, device=options.device)


def _score(options: argparse.Namespace) -> None:
    from eval_asr.score import score_folder
    from eval_asr.tables import score_table

    print(score_table(score_folder(options.results, **_rules(options))))


def _compare(options: argparse.Namespace) -> None:
    from eval_asr.compare import compare_scores
    from eval_asr.score import score_folder
    from eval_asr.tables import comparison_text

    before, after = (score_folder(folder, **_rules(options)) for folder in (options.before, options.after))
    for comparison in compare_scores(before, after):
        print(comparison_text(comparison, num_clips=options.clips))


def _report(options: argparse.Namespace) -> None:
    from eval_asr.report import write_html, write_markdown, write_picture
    from eval_asr.score import score_folder

    scores = score_folder(options.results, **_rules(options))
    try:
        if options.out is not None:
            write_html(scores, options.out, folder=options.results)
        if options.picture is not None:
            write_picture(scores, options.picture)
        if options.markdown is not None:
            write_markdown(scores, options.markdown, picture=options.picture)
    except OSError as error:
        raise EvalError(f"{error.filename or options.out}: cannot be written ({error.strerror})") from error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Our own in one line; those of libraries as ever."""
    ours = issubclass(category, ScoringWarning)
    text = f"{PROGRAM}: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _rules(options: argparse.Namespace) -> dict[str, Any]:
    return {"rules": options.scoring, "leaderboard": options.leaderboard, "language": options.language}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    prepare_environment()
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command == "run" and not (options.data or options.suite):
        parser.error("run: name a corpus with --data or --suite")
    if options.command == "run" and options.ray is not None and options.streaming:
        parser.error("run: with --ray leave out --streaming: each worker reads the downloaded set")
    if options.command == "report" and not (options.out or options.markdown or options.picture):
        parser.error("report: name a file to write with --out, --markdown or --picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ScoringWarning)
            warnings.showwarning = _show_warning
            options.action(options)
    except Phi4MMError as error:
        report_error(PROGRAM, error)
        return 1
    except KeyboardInterrupt:
        report_error(PROGRAM, RuntimeError("stopped; the rows so far are kept: the same command goes on"))
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

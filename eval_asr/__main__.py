"""``python -m eval_asr run | score | compare | report``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_asr.backends import BACKENDS, DEFAULT_PROMPT, BackendOptions, load_recogniser
from eval_asr.errors import EvalError, ScoringWarning
from eval_asr.names import SetName
from eval_asr.normalise import SCORINGS
from eval_asr.recognise import LazyRecogniser
from eval_asr.results import locked
from eval_asr.run import RunOptions, check_distinct, run_set
from eval_asr.sources import open_source
from eval_asr.suites import SUITES, suite
from phi4mm.cli import INTERRUPTED, exit_code, prepare_environment
from phi4mm.cli import report as report_error

if TYPE_CHECKING:
    from eval_asr.scale import Cluster

PROGRAM = "eval_asr"
PICTURES = (".png", ".svg")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Run speech recognisers over corpora and score them as the Open ASR Leaderboard does.",
        epilog="Exit code: 0 done, 1 clips failed or an error (reported in one line), 2 usage, 130 stopped by Ctrl-C.",
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


def _run(options: argparse.Namespace) -> int:
    from eval_asr.settings import check_settings, prepare_settings, record_end

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
    failed = 0
    with locked(options.out), _cluster(options) as cluster, LazyRecogniser(load, options.warmup) as recogniser:
        sources = [open_source(spec, streaming=options.streaming, language=options.language) for spec in specs]
        check_distinct(sources)
        manifests = [options.out / SetName(backend.label, one.path, one.name, one.split).file_name for one in sources]
        for source, manifest in zip(sources, manifests, strict=True):
            check_settings(manifest, source, backend, run_options)
        for source, manifest in zip(sources, manifests, strict=True):
            prepare_settings(manifest, source, backend, run_options)
            elsewhere = None if cluster is None else cluster.transcriber(load, source.language, options.warmup)
            summary = run_set(recogniser, source, manifest, run_options, elsewhere)
            record_end(manifest, summary.timing, summary.num_rows)
            print(f"{manifest}: {summary.sentence()}", flush=True)
            failed += summary.num_failed
    if failed:
        report_error(PROGRAM, f"{failed} failed; the same command tries them again")
    return 1 if failed else 0


def _cluster(options: argparse.Namespace) -> AbstractContextManager[Cluster | None]:
    if options.ray is None:
        return nullcontext()
    try:
        from eval_asr.scale import ray_cluster
    except ImportError as error:
        raise EvalError(f"--ray needs {error.name}, which is not installed; pip install 'phi4mm[ray]'") from error
    return ray_cluster(options.ray, options.workers, device=options.device)


def _score(options: argparse.Namespace) -> int:
    from eval_asr.score import score_folder
    from eval_asr.tables import score_table

    print(score_table(score_folder(options.results, **_rules(options))))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from eval_asr.compare import compare_scores
    from eval_asr.score import score_folder
    from eval_asr.tables import comparison_text

    before, after = (score_folder(folder, **_rules(options)) for folder in (options.before, options.after))
    for comparison in compare_scores(before, after):
        print(comparison_text(comparison, num_clips=options.clips))
    return 0


def _report(options: argparse.Namespace) -> int:
    from eval_asr.score import score_folder

    for file in (options.out, options.markdown, options.picture):
        if file is not None:
            _check_writable(file)
    if options.picture is not None and options.picture.suffix.lower() not in PICTURES:
        raise EvalError(f"{options.picture}: ends in {options.picture.suffix!r}; expected {' or '.join(PICTURES)}")
    try:
        from eval_asr.report import write_html, write_markdown, write_picture
    except ImportError as error:
        raise EvalError(f"report needs {error.name}, which is not installed; pip install 'phi4mm[eval]'") from error
    scores = score_folder(options.results, **_rules(options))
    for file, write in (
        (options.out, write_html),
        (options.picture, write_picture),
        (options.markdown, partial(write_markdown, picture=options.picture)),
    ):
        if file is not None:
            try:
                write(scores, file)
            except OSError as error:
                raise EvalError(f"{file}: cannot be written ({error.strerror}); make room, or name another") from error
    return 0


def _check_writable(file: Path) -> None:
    """Before the work: whether a file can be made here.

    Raises:
        EvalError: it is a folder, or its folder is missing or cannot be written.
    """
    if file.is_dir():
        raise EvalError(f"{file}: is a folder; name a file in it")
    if not file.parent.is_dir():
        raise EvalError(f"{file}: cannot be written, there is no folder {file.parent}; make it, or name another file")
    if not os.access(file.parent, os.W_OK):
        raise EvalError(f"{file}: cannot be written, the folder does not allow it; name another file")


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that it cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("always", ScoringWarning)
        warnings.showwarning = _show_warning
        return exit_code(PROGRAM, lambda: _interruptible(options))


def _interruptible(options: argparse.Namespace) -> int:
    try:
        code: int = options.action(options)
    except KeyboardInterrupt:
        if options.command != "run":
            raise
        report_error(PROGRAM, "stopped; the rows so far are kept: the same command goes on")
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())

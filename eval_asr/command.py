"""What ``run``, ``score``, ``compare`` and ``report`` do."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_asr.backends import BackendOptions, load_recogniser
from eval_asr.errors import EvalError, ResultsError, ScoringWarning
from eval_asr.names import SetName
from eval_asr.parser import parse
from eval_asr.recognise import LazyRecogniser
from eval_asr.results import locked
from eval_asr.run import RunOptions, check_distinct, run_set
from eval_asr.sources import open_source
from eval_asr.suites import suite
from phi4mm.cli import prepare_environment
from phi4mm.cli import report as report_error
from phi4mm.errors import install_hint

if TYPE_CHECKING:
    from eval_asr.scale import Cluster

PROGRAM = "eval_asr"
_LONGEST_NAME = 220  # bytes; a file system takes 255, and files beside have longer names
PICTURES = (".png", ".svg")


def run_command(arguments: Sequence[str] | None) -> int:
    """Run a command line and return its exit code.

    Raises:
        Phi4MMError: what stopped it.
    """
    options = parse(arguments)
    prepare_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("always", ScoringWarning)
        warnings.showwarning = _show_warning
        return _ACTIONS[options.command](options)


def _run(options: argparse.Namespace) -> int:
    try:
        return _run_all(options)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("the rows so far are kept: the same command goes on")
        raise


def _run_all(options: argparse.Namespace) -> int:
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
            if len(os.fsencode(manifest.name)) > _LONGEST_NAME:
                raise ResultsError(
                    f"{source.spec}: its results would have a name of {len(os.fsencode(manifest.name))} bytes, at most "
                    f"{_LONGEST_NAME} are possible; give the list and its folder shorter names"
                )
            check_settings(manifest, source, backend, run_options)
        for source, manifest in zip(sources, manifests, strict=True):
            prepare_settings(manifest, source, backend, run_options)
            elsewhere = None if cluster is None else cluster.transcriber(load, source.language, options.warmup)
            summary = run_set(recogniser, source, manifest, run_options, elsewhere)
            record_end(manifest, summary.timing, summary.num_rows)
            print(f"{manifest}: {summary.sentence()}", flush=True)
            failed += summary.num_failed
    if failed:
        report_error(PROGRAM, f"{failed} clip{'' if failed == 1 else 's'} failed; the same command tries again")
    return 1 if failed else 0


def _cluster(options: argparse.Namespace) -> AbstractContextManager[Cluster | None]:
    if options.ray is None:
        return nullcontext()
    try:
        from eval_asr.scale import ray_cluster
    except ImportError as error:
        raise EvalError(f"--ray needs {error.name}, which is not installed; {install_hint('ray')}") from error
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
        raise EvalError(f"report needs {error.name}, which is not installed; {install_hint('eval')}") from error
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


_ACTIONS = {"run": _run, "score": _score, "compare": _compare, "report": _report}

"""Short names of sets, for tables and plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from eval_asr.names import Run, run_names
from eval_asr.report.published import leaderboard_set
from eval_asr.score import SetScore


def in_order(scores: Sequence[SetScore]) -> list[SetScore]:
    """The runs on a set side by side; sets and runs in the order met."""
    datasets = list(dict.fromkeys(score.name.dataset for score in scores))
    return sorted(scores, key=lambda score: datasets.index(score.name.dataset))


def run_labels(scores: Sequence[SetScore]) -> dict[Run, str]:
    """The runs in the order met, with what to call them."""
    return run_names(score.run for score in scores)


def set_labels(scores: Sequence[SetScore], joint: str = " · ") -> list[str]:
    """One label a score: the set's name, with the run where there are several; and what is there of a set in part.

    >>> set_labels([])
    []
    """
    runs = run_labels(scores)
    labels = set_names(scores)
    if len(runs) > 1:
        labels = [f"{name}{joint}{runs[score.run]}" for name, score in zip(labels, scores, strict=True)]
    return [
        f"{label}{joint if joint.isspace() else ' '}({score.part})" if score.part else label
        for label, score in zip(labels, scores, strict=True)
    ]


def set_names(scores: Sequence[SetScore]) -> list[str]:
    """The set of each score: its short name, longer where two sets would share it."""
    short = [_short(score) for score in scores]
    datasets: dict[str, set[str]] = {}
    for label, score in zip(short, scores, strict=True):
        datasets.setdefault(label, set()).add(score.name.dataset)
    return [
        label if len(datasets[label]) == 1 else score.name.dataset for label, score in zip(short, scores, strict=True)
    ]


def address(file: Path, folder: Path) -> str:
    """What a page in ``folder`` calls a file: relative to it, so that both can move together."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(file, folder)).as_posix()))
    except ValueError:  # on another drive
        return file.absolute().as_uri()


def _short(score: SetScore) -> str:
    name = score.name
    known = leaderboard_set(name)
    if known is not None:
        return known
    return f"{name.name or PurePosixPath(name.path).name} {name.split}"

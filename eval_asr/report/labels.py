"""Short names of sets, for tables and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from eval_asr.report.published import leaderboard_set
from eval_asr.score import SetScore


def set_labels(scores: Sequence[SetScore], joint: str = " · ") -> list[str]:
    """One label a score: the set's short name, longer where two sets would share it; with the model where several ran.

    >>> set_labels([])
    []
    """
    short = [_short(score) for score in scores]
    datasets: dict[str, set[str]] = {}
    for label, score in zip(short, scores, strict=True):
        datasets.setdefault(label, set()).add(score.name.dataset)
    labels = [
        label if len(datasets[label]) == 1 else score.name.dataset for label, score in zip(short, scores, strict=True)
    ]
    if len(models(scores)) == 1:
        return labels
    return [f"{label}{joint}{score.name.model}" for label, score in zip(labels, scores, strict=True)]


def models(scores: Sequence[SetScore]) -> list[str]:
    """The models, in the order met."""
    return list(Counter(score.name.model for score in scores))


def _short(score: SetScore) -> str:
    name = score.name
    known = leaderboard_set(name)
    if known is not None:
        return known
    return f"{name.name or PurePosixPath(name.path).name} {name.split}"

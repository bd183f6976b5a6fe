"""The figures of the report as text, the same for HTML and markdown."""

from __future__ import annotations

from collections.abc import Sequence

from eval_asr.report.labels import set_labels
from eval_asr.score import SetScore, composites

NONE = "–"


def set_rows(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    """One row a set."""
    return [
        {
            "label": label,
            "wer": f"{score.wer:.2f}",
            "interval": f"{score.interval[0]:.2f}–{score.interval[1]:.2f}",
            "cer": f"{score.cer:.2f}",
            "substitutions": f"{score.errors.substitutions:,}",
            "deletions": f"{score.errors.deletions:,}",
            "insertions": f"{score.errors.insertions:,}",
            "words": f"{score.errors.reference_words:,}",
            "clips": f"{len(score.rows):,}",
            "failed": str(score.num_failed),
            "left_out": str(score.num_left_out),
            "audio": _length(score.duration),
            "rtfx": speed(score.rtfx),
        }
        for label, score in zip(set_labels(scores), scores, strict=True)
    ]


def mean_rows(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    """One row a model that ran on several sets."""
    names = [score.name.model for score in scores]
    return [
        {"label": f"Mean WER, {model}", "wer": f"{whole.wer:.2f}", "rtfx": speed(whole.rtfx)}
        for model, whole in composites(scores).items()
        if names.count(model) > 1
    ]


def speed(rtfx: float | None) -> str:
    return NONE if rtfx is None else f"{rtfx:,.2f}" if rtfx < 100 else f"{rtfx:,.0f}"


def _length(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"

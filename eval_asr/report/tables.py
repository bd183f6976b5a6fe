"""The figures of the report as text, the same for HTML and markdown."""

from __future__ import annotations

from collections.abc import Sequence

from eval_asr.report.labels import models, set_names
from eval_asr.score import SetScore, composites

NONE = "–"


def set_rows(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    """One row a set."""
    return [
        {
            "set": name,
            "model": score.name.model,
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
            "audio": audio_length(score.duration),
            "rtfx": speed(score.rtfx),
        }
        for name, score in zip(set_names(scores), scores, strict=True)
    ]


def mean_rows(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    """One row a model, where one of them ran on several sets; the label says on how many."""
    sets = {model: [score for score in scores if score.name.model == model] for model in models(scores)}
    if max(map(len, sets.values())) == 1:
        return []
    return [
        {
            "label": f"Mean of {len(sets[model])} sets" if len(sets[model]) > 1 else "One set only",
            "model": model,
            "wer": f"{whole.wer:.2f}",
            "rtfx": speed(whole.rtfx),
        }
        for model, whole in composites(scores).items()
    ]


def speed(rtfx: float | None) -> str:
    return NONE if rtfx is None else f"{rtfx:,.2f}" if rtfx < 100 else f"{rtfx:,.0f}"


def audio_length(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"

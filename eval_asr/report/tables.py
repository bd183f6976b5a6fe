"""The figures of the report as text, the same for HTML and markdown."""

from __future__ import annotations

from collections.abc import Sequence

from eval_asr.report.labels import run_labels, set_names
from eval_asr.score import Composite, SetScore, composites

NONE = "–"


def set_rows(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    """One row a set; "part" says what is there of a set that was run in part."""
    runs = run_labels(scores)
    return [
        {
            "set": name,
            "part": score.part,
            "run": runs[score.run],
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
    """One row a run, where one of them is of several sets; the label says of how many, and how many of them in part."""
    runs, means = run_labels(scores), composites(scores)
    if max(mean.num_sets for mean in means.values()) == 1:
        return []
    return [
        {
            "label": (f"Mean of {mean.num_sets} sets" if mean.num_sets > 1 else "One set only") + _in_part(mean),
            "run": runs[run],
            "wer": f"{mean.wer:.2f}",
            "rtfx": speed(mean.rtfx),
        }
        for run, mean in means.items()
    ]


def _in_part(mean: Composite) -> str:
    if not mean.num_in_part:
        return ""
    if mean.num_sets == 1:
        return ", in part"
    return ", all in part" if mean.num_in_part == mean.num_sets else f", {mean.num_in_part} of them in part"


def speed(rtfx: float | None) -> str:
    return NONE if rtfx is None else f"{rtfx:,.2f}" if rtfx < 100 else f"{rtfx:,.0f}"


def audio_length(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"

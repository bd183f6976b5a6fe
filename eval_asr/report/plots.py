"""The report's pictures: word error rate by set and by clip length, and the kinds of errors.

Drawn by matplotlib without its global state. As SVG inside a page they take the page's text colour, so that they fit
a light and a dark page alike.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval_asr.report.labels import in_order, run_labels, set_labels
from eval_asr.report.published import PHI4, PUBLISHED, leaderboard_set
from eval_asr.score import LengthBucket, SetScore
from eval_asr.word_errors import WordErrors
from phi4mm.files import written_whole

_WIDTH = 4.8  # inches; small, so that letters stay readable on a phone
_INK = "#010203"  # stands for the page's text colour until the SVG is put into the page
_EDGE = "#222222"  # around light marks, on a light and a dark page alike
_SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito's colour-blind palette
_MARKERS = ("o", "s", "^", "D", "v", "P")
_KINDS = (("substitutions", "#E69F00", "//"), ("deletions", "#D55E00", ""), ("insertions", "#0072B2", ".."))
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "eval_asr",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.8,
}


def wer_by_set(scores: Sequence[SetScore]) -> Figure:
    """Bars with their 95 % intervals; a diamond marks the published Phi-4-multimodal where it is of the same set."""
    scores = in_order(scores)
    figure, axes = _horizontal(scores, "word error rate, %, and 95 % interval")
    colours = {run: _SERIES[index % len(_SERIES)] for index, run in enumerate(run_labels(scores))}
    for place, score in enumerate(scores):
        low, high = score.interval
        axes.barh(place, score.wer, height=0.62, color=colours[score.run])
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.4, marker="|", markersize=7)
        end = (max(high, score.wer), place)
        axes.annotate(f"{score.wer:.2f}", end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=10)
    marks = [(rate, place) for place, score in enumerate(scores) if (rate := _published_phi4(score)) is not None]
    if marks:
        rates, places = zip(*marks, strict=True)
        label = "Phi-4-multimodal, published"
        axes.plot(rates, places, "D", markersize=7, color="white", markeredgecolor=_EDGE, label=label)
        figure.legend(frameon=False, fontsize=10, loc="outside upper right")
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    return figure


def _published_phi4(score: SetScore) -> float | None:
    known = leaderboard_set(score.name)
    if known is None or score.part or not score.rules.lower().startswith("classic"):
        return None
    return next(entry.wer.get(known) for entry in PUBLISHED if entry.system == PHI4)


def wer_by_length(scores: Sequence[SetScore]) -> Figure:
    """Word error rate by clip length: a line for each set, or for each run where there are many sets."""
    runs = run_labels(scores)
    if len(scores) <= len(_SERIES):
        series = list(zip(set_labels(scores), (list(score.by_length) for score in scores), strict=True))
    else:
        series = [(label, _pooled([score for score in scores if score.run == run])) for run, label in runs.items()]
    edges = sorted({(bucket.low, bucket.high) for _, buckets in series for bucket in buckets if bucket.num_clips})
    legend_lines = len(series[: len(_SERIES)]) if len(series) > 1 else 0
    figure = Figure(figsize=(_WIDTH, 3.0 + 0.2 * legend_lines), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, buckets) in enumerate(series[: len(_SERIES)]):
        points = [
            (edges.index((bucket.low, bucket.high)), 100 * bucket.errors.wer)
            for bucket in buckets
            if bucket.num_clips and math.isfinite(bucket.errors.wer)
        ]
        axes.plot(
            [place for place, _ in points],
            [rate for _, rate in points],
            color=_SERIES[index],
            marker=_MARKERS[index],
            label=label,
        )
    counts = [_clips_between(scores, *edge) for edge in edges]
    axes.set_xticks(
        range(len(edges)),
        [f"{_seconds(low, high)}\n{count}" for (low, high), count in zip(edges, counts, strict=True)],
    )
    axes.set_xlabel("clip length, s (below: clips)")
    axes.set_ylabel("word error rate, %")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=_INK, alpha=0.15)
    if len(series) > 1:
        figure.legend(frameon=False, fontsize=10, loc="outside upper left", ncols=2 if len(runs) == 1 else 1)
    return figure


def _clips_between(scores: Sequence[SetScore], low: float, high: float) -> int:
    """Clips of this length, each once however many models transcribed it."""
    return len(
        {(score.name.dataset, row.row.audio_filepath) for score in scores for row in score.rows
         if low <= row.row.duration < high}
    )  # fmt: skip


def _pooled(scores: Sequence[SetScore]) -> list[LengthBucket]:
    pooled: dict[tuple[float, float], LengthBucket] = {}
    for bucket in (bucket for score in scores for bucket in score.by_length):
        edge = (bucket.low, bucket.high)
        old = pooled.get(edge, LengthBucket(*edge, 0, WordErrors()))
        pooled[edge] = LengthBucket(*edge, old.num_clips + bucket.num_clips, old.errors + bucket.errors)
    return [pooled[edge] for edge in sorted(pooled)]


def _seconds(low: float, high: float) -> str:
    return f"≥ {low:g}" if math.isinf(high) else f"{low:g}–{high:g}"


def error_kinds(scores: Sequence[SetScore]) -> Figure:
    """Substitutions, deletions and insertions, each in percent of the words of the reference."""
    scores = in_order(scores)
    figure, axes = _horizontal(scores, "% of the reference's words")
    for place, score in enumerate(scores):
        left = 0.0
        for kind, colour, hatch in _KINDS:
            share = 100 * getattr(score.errors, kind) / max(score.errors.reference_words, 1)
            label = kind if place == 0 else None
            axes.barh(place, share, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="white", label=label)
            left += share
    figure.legend(frameon=False, fontsize=10, ncols=3, loc="outside upper right", handlelength=1.2, columnspacing=1.0)
    return figure


def _horizontal(scores: Sequence[SetScore], measure: str) -> tuple[Figure, Axes]:
    labels = set_labels(scores, joint="\n")
    height = 0.42 if len(run_labels(scores)) == 1 else 0.58
    figure = Figure(figsize=(_WIDTH, 1.3 + height * len(scores)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(scores)), labels)
    axes.set_xlabel(measure, loc="right")
    axes.grid(axis="x", color=_INK, alpha=0.15)
    axes.set_axisbelow(True)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    return figure, axes


def to_svg(draw: Callable[[Sequence[SetScore]], Figure], scores: Sequence[SetScore], prefix: str) -> str:
    """A picture as an ``<svg>`` element that refers to nothing outside itself.

    Args:
        draw: one of the functions above.
        prefix: makes the element's ids differ from those of other pictures in the page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw(scores).savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)


def write_picture(scores: Sequence[SetScore], path: Path) -> None:
    """Write the word error rate by set, for a README; the file's ending gives the format (.png, .svg)."""
    with matplotlib.rc_context(_STYLE), written_whole(path) as partial:
        wer_by_set(scores).savefig(partial, dpi=150, facecolor="white")

"""Scores and comparisons as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from eval_asr.compare import ChangedClip, Comparison
from eval_asr.errors import short
from eval_asr.names import run_names
from eval_asr.score import Composite, ScoredRow, SetScore, composites

_HEADER = (
    "set", "WER %", "95 % interval", "CER %", "sub", "del", "ins", "words", "clips", "left out", "failed", "RTFx",
)  # fmt: skip


def score_table(scores: Sequence[SetScore]) -> str:
    """The sets, the rules, what was left out or failed, error rates by clip length, and the composites: run by run."""
    lines = []
    runs = run_names(score.run for score in scores)
    for run, label in runs.items():
        of_run = [score for score in scores if score.run == run]
        for rules in dict.fromkeys(score.rules for score in of_run):
            lines.append(f"{label}, scored by the rules {rules}")
        lines += _columns([_HEADER, *(_cells(score) for score in of_run)])
        if len(of_run) > 1:
            lines.append(_mean(composites(of_run)[run]))
        lines.append("WER % by clip length (clips):")
        lines += [f"  {score.name.dataset}: {_lengths(score)}" for score in of_run]
        lines += [
            f"NOT THE WHOLE SET: {score.name.dataset}: {score.part}; its figures are of these alone"
            for score in of_run
            if score.part
        ]
        lines += [_failures(score) for score in of_run if score.num_failed]
        lines.append("")
    if len(runs) > len({run.model for run in runs}):
        lines.append("Each folder is a run of its own; no mean is taken across folders.")
    return "\n".join(lines).rstrip()


def _mean(mean: Composite) -> str:
    in_part = f" ({mean.num_in_part} in part)" if mean.num_in_part else ""
    return f"mean of {mean.num_sets}{in_part}: WER {mean.wer:.2f} %, RTFx {_speed(mean.rtfx)}"


def comparison_text(comparison: Comparison, *, num_clips: int) -> str:
    """The difference, how sure it is, and the clips that changed most."""
    low, high = comparison.interval
    lines = [
        f"{comparison.dataset}: {comparison.before} {comparison.wer_before:.2f} %, "
        f"{comparison.after} {comparison.wer_after:.2f} % WER; difference {comparison.difference:+.2f} "
        f"({low:+.2f} to {high:+.2f}), p = {comparison.p_value:.4f}, over {_clips(comparison.num_clips)}",
        f"rules {comparison.rules}; paired bootstrap over clips",
    ]
    for name, part in ((comparison.before, comparison.part_before), (comparison.after, comparison.part_after)):
        if part:
            lines.append(f"NOT THE WHOLE SET: {name}: {part}")
    if comparison.num_unpaired:
        count = comparison.num_unpaired
        lines.append(f"{_clips(count)} {'was' if count == 1 else 'were'} run by one of them only, and not counted")
    better = sum(clip.change < 0 for clip in comparison.changed)
    lines.append(f"fewer errors in {_clips(better)}, more in {len(comparison.changed) - better}")
    for clip in comparison.changed[:num_clips]:
        lines += _changed(clip)
    return "\n".join(lines)


def _cells(score: SetScore) -> tuple[str, ...]:
    low, high = score.interval
    errors = score.errors
    numbers = (errors.substitutions, errors.deletions, errors.insertions, errors.reference_words)
    return (
        score.name.dataset + (f" ({score.part})" if score.part else ""),
        f"{score.wer:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{score.cer:.2f}",
        *map(str, numbers),
        *map(str, (len(score.rows), score.num_left_out, score.num_failed)),
        _speed(score.rtfx),
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        numbers = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *numbers]))
    return lines


def _speed(rtfx: float | None) -> str:
    return "unknown" if rtfx is None else f"{rtfx:.2f}"


def _lengths(score: SetScore) -> str:
    return ", ".join(
        (f"{bucket.low:.0f}-{bucket.high:.0f}" if bucket.high < float("inf") else f"over {bucket.low:.0f}")
        + f" s {100 * bucket.errors.wer:.2f} ({bucket.num_clips})"
        for bucket in score.by_length
    )


def _failures(score: SetScore) -> str:
    failed = [row.row for row in score.rows if row.row.error is not None]
    first = f"; the first, {short(failed[0].audio_filepath)}: {short(failed[0].error or '')}" if failed else ""
    verb = "counts" if score.num_failed == 1 else "count"
    return f"{score.name.dataset}: {_clips(score.num_failed)} failed and {verb} as empty{first}"


def _clips(number: int) -> str:
    return "1 clip" if number == 1 else f"{number:,} clips"


def _changed(clip: ChangedClip) -> list[str]:
    def line(row: ScoredRow) -> str:
        return f"    {row.errors.total} errors: {row.hypothesis or '(nothing)'}"

    name, reference = clip.before.row.audio_filepath, clip.before.reference
    return [f"  {clip.change:+d} {name}", f"    reference: {reference}", line(clip.before), line(clip.after)]

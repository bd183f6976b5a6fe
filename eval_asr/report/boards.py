"""Our figures beside the published ones, set by set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval_asr.names import Run
from eval_asr.report.labels import run_labels
from eval_asr.report.published import (
    ENGLISH,
    MULTILINGUAL,
    PUBLISHED,
    PUBLISHED_MULTILINGUAL,
    Published,
    leaderboard_set,
)
from eval_asr.report.tables import NONE, speed
from eval_asr.score import SetScore, composites


@dataclass(frozen=True)
class BoardRow:
    """A system's figures as text, in the order of the board's columns; ``reference`` counts the sources from 1."""

    system: str
    mean: str
    values: tuple[str, ...]
    rtfx: str
    date: str
    rules: str
    ours: bool
    reference: int | None


@dataclass(frozen=True)
class Board:
    """Systems by sets; ``columns`` are sets, ``sources`` are named by the rows' ``reference``."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[BoardRow, ...]
    sources: tuple[str, ...]


def boards(scores: Sequence[SetScore]) -> list[Board]:
    """The boards that have a set of ours, run whole."""
    whole = [score for score in scores if not score.part]
    candidates = (
        _board("Beside the published figures", ENGLISH, PUBLISHED, whole),
        _board("Beside the published figures, other languages", MULTILINGUAL, PUBLISHED_MULTILINGUAL, whole),
    )
    return [board for board in candidates if any(row.ours for row in board.rows)]


def _board(title: str, columns: tuple[str, ...], published: Sequence[Published], scores: Sequence[SetScore]) -> Board:
    sources = tuple(dict.fromkeys(entry.source for entry in published))
    runs = run_labels(scores)
    ours = [row for run, label in runs.items() if (row := _our_row(run, label, columns, scores)) is not None]
    theirs = [
        BoardRow(
            system=entry.system,
            mean=NONE if entry.mean is None else f"{entry.mean:.2f}",
            values=tuple(f"{entry.wer[name]:.2f}" if name in entry.wer else NONE for name in columns),
            rtfx=speed(entry.rtfx),
            date=entry.date,
            rules=entry.rules,
            ours=False,
            reference=sources.index(entry.source) + 1,
        )
        for entry in published
    ]
    note = "Word error rates in percent, as their sources give them, on whole sets; compare only equal scoring rules."
    return Board(title, note, columns, (*ours, *theirs), sources)


def _our_row(run: Run, label: str, columns: tuple[str, ...], scores: Sequence[SetScore]) -> BoardRow | None:
    by_set = {leaderboard_set(score.name): score for score in scores if score.run == run}
    found = [by_set[name] for name in columns if name in by_set]
    if not found:
        return None
    complete = len(found) == len(columns)
    whole = composites(found)[run]
    return BoardRow(
        system=f"{label}, this report",
        mean=f"{whole.wer:.2f}" if complete else NONE,
        values=tuple(f"{by_set[name].wer:.2f}" if name in by_set else NONE for name in columns),
        rtfx=speed(whole.rtfx),
        date="this report",
        rules="; ".join(dict.fromkeys(score.rules for score in found)),
        ours=True,
        reference=None,
    )

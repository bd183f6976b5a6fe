"""The report as markdown: a table, and a picture where there is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from eval_asr.report.boards import boards
from eval_asr.report.tables import mean_rows, set_rows
from eval_asr.score import SetScore

_SETS = (
    ("Set", "label"), ("WER, %", "wer"), ("95 % interval", "interval"), ("CER, %", "cer"), ("Sub.", "substitutions"),
    ("Del.", "deletions"), ("Ins.", "insertions"), ("Words", "words"), ("Clips", "clips"), ("Failed", "failed"),
    ("Audio", "audio"), ("RTFx", "rtfx"),
)  # fmt: skip


def to_markdown(scores: Sequence[SetScore], *, picture: str | None = None, published: bool = True) -> str:
    """A table of the sets, and one of the published figures, for a README.

    Args:
        scores: of the sets to show, at least one.
        picture: address of a picture to show under the table.
        published: whether to add the published figures.
    """
    blocks = [_table([title for title, _ in _SETS], [[row[key] for _, key in _SETS] for row in set_rows(scores)])]
    lines = [f"{_escape(row['label'])}: {row['wer']} %, RTFx {row['rtfx']}." for row in mean_rows(scores)]
    lines.append(f"Scoring rules: {_escape('; '.join(dict.fromkeys(score.rules for score in scores)))}.")
    blocks.append("\n".join(lines))
    if picture is not None:
        blocks.append(f"![Word error rate by set]({quote(picture)})")
    for board in boards(scores) if published else ():
        header = ["System", "Mean", *board.columns, "RTFx", "Date", "Scoring rules", "Source"]
        rows = [
            [row.system, row.mean, *row.values, row.rtfx, row.date, row.rules, str(row.reference or "")]
            for row in board.rows
        ]
        sources = [f"{number}. {_escape(source)}" for number, source in enumerate(board.sources, start=1)]
        blocks += [f"### {board.title}", board.note, _table(header, rows), "\n".join(sources)]
    return "\n\n".join(blocks) + "\n"


def write_markdown(
    scores: Sequence[SetScore], path: Path, *, picture: str | None = None, published: bool = True
) -> None:
    """Write it; whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(to_markdown(scores, picture=picture, published=published), encoding="utf-8")
    os.replace(partial, path)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(text: str) -> str:
    for letter in "\\|<>*_`[]":
        text = text.replace(letter, "\\" + letter)
    return " ".join(text.split())

"""The report as markdown: a table, and a picture where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval_asr.report.boards import boards
from eval_asr.report.labels import address, in_order
from eval_asr.report.tables import mean_rows, set_rows
from eval_asr.score import SetScore
from phi4mm.files import written_whole

_SETS = (
    ("Set", "set"), ("Model", "run"), ("WER, %", "wer"), ("95 % interval", "interval"), ("CER, %", "cer"),
    ("Sub.", "substitutions"), ("Del.", "deletions"), ("Ins.", "insertions"), ("Words", "words"), ("Clips", "clips"),
    ("Failed", "failed"), ("Audio", "audio"), ("RTFx", "rtfx"),
)  # fmt: skip

_LEGEND = (
    "WER, CER: word and character error rate. Sub., Del., Ins.: words substituted, deleted and inserted. RTFx: seconds "
    "of audio transcribed in a second."
)


def to_markdown(scores: Sequence[SetScore], *, picture: str | None = None) -> str:
    """A table of the sets for a README, and the published figures where they are of one of these sets.

    Args:
        scores: of the sets to show, at least one.
        picture: address (quoted, as in a link) of a picture to show under the table.
    """
    scores = in_order(scores)
    header, keys = [title for title, _ in _SETS], [key for _, key in _SETS]
    blocks = [_table(header, [_cells(row, keys) for row in set_rows(scores)], names=2)]
    means = mean_rows(scores)
    if means:
        keys = ["run", "label", "wer", "rtfx"]
        rows = [[row[key] for key in keys] for row in means]
        blocks.append(_table(["Model", "Over", "WER, %", "RTFx"], rows, names=2))
    lines = [_LEGEND]
    lines.append(f"Scoring rules: {_escape('; '.join(dict.fromkeys(score.rules for score in scores)))}.")
    blocks.append("\n".join(lines))
    if picture is not None:
        blocks.append(f"![Word error rate by set]({picture})")
    for board in boards(scores):
        header = ["System", "Mean", *board.columns, "RTFx", "Date", "Scoring rules", "Source"]
        rows = [
            [row.system, row.mean, *row.values, row.rtfx, row.date, row.rules, str(row.reference or "")]
            for row in board.rows
        ]
        sources = [f"{number}. {_escape(source)}" for number, source in enumerate(board.sources, start=1)]
        blocks += [f"### {board.title}", board.note, _table(header, rows), "\n".join(sources)]
    return "\n\n".join(blocks) + "\n"


def _cells(row: dict[str, str], keys: Sequence[str]) -> list[str]:
    of_part = f" ({row['part']})" if row["part"] else ""
    return [row[key] + (of_part if key == "set" else "") for key in keys]


def write_markdown(scores: Sequence[SetScore], path: Path, *, picture: Path | None = None) -> None:
    """Write it; whole or not at all. The picture's address is relative to the markdown's folder."""
    link = None if picture is None else address(picture, path.parent)
    with written_whole(path) as partial:
        partial.write_bytes(to_markdown(scores, picture=link).encode("utf-8", "backslashreplace"))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    lines = [
        header,
        ["---"] * names + ["---:"] * (len(header) - names),
        *([_escape(cell) for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escape(text: str) -> str:
    for letter in "\\|<>*_`[]":
        text = text.replace(letter, "\\" + letter)
    return " ".join(text.split())

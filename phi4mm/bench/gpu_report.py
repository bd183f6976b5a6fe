"""What the GPU program found: figures, checks, and what was left out, as JSON and as a table."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phi4mm.files import written_whole


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        section: of the program.
        name, unit: what was measured.
        value: ours; of a check what was compared.
        port: transformers' under the same conditions.
        passed: of a check; ``None``: it is none.
        note: conditions.
    """

    section: str
    name: str
    value: float
    unit: str
    port: float | None = None
    passed: bool | None = None
    note: str = ""


@dataclass
class Report:
    """Attributes:
    machine: what the figures depend on.
    figures: in order.
    skipped, errors: sections, and why.
    """

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed and no section ended with an error."""
        return not self.errors and all(figure.passed is not False for figure in self.figures)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        verdict = {None: "", True: " passed", False: " FAILED"}[figure.passed]
        print(f"{figure.section}: {figure.name}: {_shown(figure.value, figure.unit)}{verdict}", file=sys.stderr)

    def write(self, folder: Path) -> None:
        """``gpu.json`` and ``gpu.md``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("gpu.json", json.dumps(asdict(self), indent=2) + "\n"), ("gpu.md", self.table())):
            with written_whole(folder / name) as part:
                part.write_text(text, encoding="utf-8")

    def table(self) -> str:
        """Markdown."""
        lines = [", ".join(f"{name} {value}" for name, value in self.machine.items()), ""]
        lines += ["| | | phi4mm | transformers | times better | |", "|---|---|---:|---:|---:|---|"]
        for figure in self.figures:
            port = "" if figure.port is None else _shown(figure.port, figure.unit)
            better = "" if figure.port is None else f"{_times_better(figure):.2f}"
            verdict = {None: "", True: "passed", False: "**failed**"}[figure.passed]
            note = "; ".join(part for part in (verdict, figure.note) if part)
            value = _shown(figure.value, figure.unit)
            lines.append(f"| {figure.section} | {figure.name} | {value} | {port} | {better} | {note} |")
        for title, reasons in (("Skipped", self.skipped), ("Errors", self.errors)):
            lines += ["", f"{title}:"] + [f"- {name}: {why}" for name, why in reasons.items()] if reasons else []
        return "\n".join(lines) + "\n"


class Budget:
    """Time that a section may take.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def part(self, seconds: float) -> Budget:
        """So much of it, if there is as much."""
        return Budget(min(seconds, self.left))


class OutOfTime(Exception):
    """What comes next in a section needs more time than is left."""


def need(budget: Budget, seconds: float, what: str) -> None:
    """Leave the section where fewer seconds are left.

    Raises:
        OutOfTime: there are.
    """
    if budget.left < seconds:
        raise OutOfTime(f"{what} takes about {seconds:.0f} s, and {max(budget.left, 0):.0f} s were left")


def _times_better(figure: Figure) -> float:
    assert figure.port is not None
    lower_is_better = figure.unit in ("s", "bytes")
    return figure.port / figure.value if lower_is_better else figure.value / figure.port


def _shown(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    if unit == "bytes/s":
        return f"{value / 1e9:.0f} GB/s"
    if unit == "flop/s":
        return f"{value / 1e12:.1f} TFLOP/s"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.4g} {unit}".rstrip()

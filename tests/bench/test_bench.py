"""The benchmark's command: one short row, both sides, a table and a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phi4mm.bench import __main__ as command
from phi4mm.bench.__main__ import main
from phi4mm.bench.cases import PRESETS
from phi4mm.bench.comparison import Result, measures, table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_sides_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    arguments = [
        "--preset",
        "tiny",
        "--only",
        "speech tower",
        "--repeats",
        "1",
        "--threads",
        "1",
        "--json",
        str(report),
    ]
    assert main(arguments) == 0
    assert "| speech tower, 10 s |" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["machine"]["cpu"]
    rows = {row["name"]: row for row in written["rows"]}
    assert set(rows) == {"load", "peak memory of the process", "speech tower, 10 s"}
    for row in rows.values():
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])


def test_the_table_tells_times_memory_and_speeds() -> None:
    rows = [
        Result("load", "s", 0.5, 1.0, 2.0),
        Result("peak", "bytes", 2.0**30, 2.0**31, 2.0),
        Result("ASR", "x", 30.0, None, None),
    ]
    assert table(rows).splitlines()[2:] == [
        "| load | 500.0 ms | 1000.0 ms | 2.00 |",
        "| peak | 1.00 GiB | 2.00 GiB | 2.00 |",
        "| ASR | 30.0 |  |  |",
    ]


def test_rows_have_names_of_their_own() -> None:
    for preset in PRESETS.values():
        names = [row.name for row in measures(preset)]
        assert len(set(names)) == len(names) > 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_question_is_set_beside_one_with_nothing_kept(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = ["--no-compare", "--only", "one picture", "--repeats", "1", "--threads", "1", "--json", str(report)]
    assert main(arguments) == 0
    rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
    name = "second question on one picture: first token"
    cold = rows[f"{name}, nothing kept"]["ours"]
    assert rows[f"{name}: times faster than with nothing kept"]["ours"] == pytest.approx(cold / rows[name]["ours"])


def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(PRESETS) == command.PRESETS
    assert main(["--only", "elephants"]) == 1
    assert "phi4mm.bench: --only 'elephants': no row's name holds that; expected" in capsys.readouterr().err
    for arguments in (["--threads", "0"], ["--repeats", "x"], ["--json", str(tmp_path)]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2

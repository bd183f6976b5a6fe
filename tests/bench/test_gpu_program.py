"""The GPU program, in small and on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phi4mm.bench import gpu_program
from phi4mm.bench.gpu_report import Budget, Figure, OutOfTime, Report, need
from phi4mm.bench.gpu_setting import tiny_setting

ABSENT = ("av", "soundfile", "librosa", "soxr", "jiwer", "silero_vad", "pysubs2")  # on a bare machine
SECTIONS = {
    "device", "parity", "compiled", "prefill", "engine", "ASR", "decode", "engine, compiled", "beside the port",
    "training",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_everything_runs_in_small_on_a_bare_machine(tmp_path: Path) -> None:
    bare = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); from phi4mm.bench.gpu import main; "
    run = f"sys.exit(main(['--tiny', '--out', {str(tmp_path)!r}]))"
    ended = subprocess.run([sys.executable, "-c", bare + run], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert not report["errors"]
    assert not report["skipped"]
    assert {figure["section"] for figure in report["figures"]} == SECTIONS == set(report["seconds"])
    assert all(figure["value"] >= 0 for figure in report["figures"])
    assert any(figure["passed"] for figure in report["figures"])
    assert (tmp_path / "gpu.md").read_text() in ended.stdout


def test_what_goes_wrong_in_a_section_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(budget: Budget, report: Report) -> None:
        raise RuntimeError("no such kernel")

    def long(budget: Budget, report: Report) -> None:
        need(budget, 1000, "a long thing")

    def short(budget: Budget, report: Report) -> None:
        report.add(Figure("short", "time", 0.25, "s", port=0.5))

    monkeypatch.setattr(
        gpu_program, "sections", lambda _: [("fails", 1, fails), ("long", 1, long), ("short", 1, short)]
    )
    report = gpu_program.run(tiny_setting(torch.device("cpu")), 10.0, tmp_path)
    assert report.errors == {"fails": "RuntimeError: no such kernel"}
    assert report.skipped["long"].startswith("a long thing takes about 1000 s")
    assert not report.passed
    assert "| short | time | 250 ms | 500 ms | 2.00 |  |" in (tmp_path / "gpu.md").read_text()


def test_a_failed_check_fails_the_program() -> None:
    report = Report({})
    report.add(Figure("parity", "error", 1e-6, "", passed=True))
    assert report.passed
    report.add(Figure("parity", "error", 1.0, "", passed=False))
    assert not report.passed


def test_a_part_of_a_budget_ends_with_the_whole() -> None:
    whole = Budget(5.0)
    assert whole.part(100.0).left <= 5.0
    with pytest.raises(OutOfTime, match="two seconds takes about 2 s"):
        need(whole.part(1.0), 2.0, "two seconds")

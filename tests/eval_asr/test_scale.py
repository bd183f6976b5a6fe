"""Runs on Ray: the rows of a run in one process, whatever happens to a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval_asr.recognise import LazyRecogniser
from eval_asr.results import Row, read_rows
from eval_asr.run import RunOptions, run_set
from eval_asr.sources import open_source
from tests.eval_asr.fakes import ToneRecogniser, write_corpus

pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")

ROOT = Path(__file__).parent.parent.parent


def untimed(manifest: Path) -> list[Row]:
    return [replace(row, time=0.0) for row in read_rows(manifest)]


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two Ray workers need two processors")
@pytest.mark.timeout(180)
def test_two_workers_of_which_one_is_killed_give_the_rows_of_one_process(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", num_clips=30)
    options = RunOptions(batch_size=3, progress=False)
    run_set(LazyRecogniser(ToneRecogniser, warmup=0), open_source(str(corpus)), tmp_path / "alone.jsonl", options)
    alone = untimed(tmp_path / "alone.jsonl")

    # Ten rows are there already, in the middle of a batch: the run goes on with them.
    lines = (tmp_path / "alone.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "ray.jsonl").write_text("".join(lines[:10]), "utf-8")
    killed = tmp_path / "killed"
    job = [sys.executable, "-m", "tests.eval_asr.ray_job", str(corpus), str(tmp_path / "ray.jsonl"), str(killed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False)

    assert done.returncode == 0, done.stderr
    assert killed.read_text("utf-8")
    assert untimed(tmp_path / "ray.jsonl") == alone

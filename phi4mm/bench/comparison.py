"""How fast on this machine, side by side with transformers on the same weights."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from phi4mm.bench import cases
from phi4mm.environment import processor_name
from phi4mm.errors import Phi4MMError
from phi4mm.files import written_whole

PROGRAM = "phi4mm.bench"
_SIDES = ("ours", "theirs")
ALONE, BATCHES = "clip by clip", "padded batches of 16"  # how the port runs the ASR job
SECOND, COLD = "second question on one", ", nothing kept"
MEDIA = {"image": "picture", "audio": "clip of 10 s"}


@dataclass(frozen=True)
class Measure:
    """One row: the work, and what is subtracted from its time (a prefill from a decode, to leave the decode).

    Attributes:
        name: in the table.
        method, arguments: of ``Ours`` and ``Theirs``.
        without: arguments of the same method whose time is taken off.
        per: what the time is divided by.
        of: where set, the row tells this many seconds of audio per second instead of a time.
        own_time: the method measures its time itself, which is what it returns.
    """

    name: str
    method: str
    arguments: tuple[Any, ...] = ()
    without: tuple[Any, ...] | None = None
    per: int = 1
    of: float | None = None
    own_time: bool = False


@dataclass(frozen=True)
class Result:
    """A row's medians: seconds, bytes or seconds of audio per second (see ``unit``), and how many times better; or a
    count of clips, without the last."""

    name: str
    unit: str
    ours: float
    theirs: float | None
    ratio: float | None


def measures(preset: cases.Preset) -> list[Measure]:
    """Every row that is timed with a preset."""
    new = preset.new_tokens
    seconds = sum(len(samples) for samples in cases.job_clips(preset.num_clips)) / cases.SAMPLING_RATE
    return [
        Measure("feature extraction, 8 clips of 10 s", "feature_extraction"),
        Measure("image preparation, 1344 x 896", "image_preparation"),
        Measure("speech tower, 10 s", "speech_tower"),
        Measure("vision tower, 2 crops", "vision_tower"),
        Measure("first token, 10 s clip", "generate", ("audio", 1, 1)),
        *(
            Measure(f"decode per token, {rows}", "generate", ("text", count, 1 + new), ("text", count, 1), new)
            for count, rows in ((1, "1 row"), (4, "4 rows"), (16, "16 rows"))
        ),
        Measure(
            "decode per token, 16 sampled rows", "generate", ("text", 16, 1 + new, True), ("text", 16, 1, True), new
        ),
        *(
            Measure(f"{SECOND} {medium}: first token{how}", "second_question", (kind, warm), own_time=True)
            for kind, medium in MEDIA.items()
            for warm, how in ((True, ""), (False, COLD))
        ),
        Measure(f"text, image, audio, image+audio: {new} tokens each", "mixed_batch"),
        *(
            Measure(
                f"ASR of {preset.num_clips} clips on {processor_name()}, RTFx; the port: {how}",
                "asr_job",
                (batch_size,),
                of=seconds,
            )
            for batch_size, how in ((1, ALONE), (16, BATCHES))
        ),
    ]


def wanted(preset: cases.Preset, only: str) -> list[Measure]:
    """The rows whose name holds a word.

    Raises:
        Phi4MMError: there are none.
    """
    every = measures(preset)
    rows = [row for row in every if only in row.name]
    if not rows:
        names = "; ".join(row.name for row in every)
        raise Phi4MMError(f"--only {only!r}: no row's name holds that; expected a part of one of: {names}")
    return rows


class Worker:
    """A process that holds one side's model."""

    def __init__(self, side: str, folder: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "phi4mm.bench.worker", side, str(folder)]
        command += ["--preset", options.preset, "--threads", str(options.threads)]
        command += ["--quantize", options.quantize] if options.quantize else []
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.peak_bytes = 0
        self.load_seconds = float(self._answer()["seconds"])

    def run(self, method: str, arguments: Sequence[Any]) -> tuple[float, Any]:
        """Seconds that it took, and what it returned."""
        assert self._process.stdin is not None
        print(json.dumps({"method": method, "arguments": arguments}), file=self._process.stdin, flush=True)
        answer = self._answer()
        self.peak_bytes = answer["peak_bytes"]
        return float(answer["seconds"]), answer["returned"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Phi4MMError(f"a side of the comparison ended with code {self._process.wait()}; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def workers(sides: Sequence[str], folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    with contextlib.ExitStack() as stack:
        started = {}
        for side in sides:
            started[side] = Worker(side, folder, options)
            stack.callback(started[side].close)
        yield started


@dataclass(frozen=True)
class Timed:
    """Of a row and a side: the median of the seconds, and what the work returned."""

    seconds: float
    returned: Any


def time_rows(group: dict[str, Worker], rows: Sequence[Measure], repeats: int) -> dict[str, dict[str, Timed]]:
    """Row -> side -> what was timed; the sides take turns, after one turn each that is not counted."""
    timed: dict[str, dict[str, Timed]] = {}
    for row in rows:
        returned: dict[str, Any] = {}
        times: dict[str, list[float]] = {side: [] for side in group}
        for turn in range(1 + repeats):
            for side in sorted(group, reverse=bool(turn % 2)):
                seconds, returned[side] = group[side].run(row.method, row.arguments)
                if row.own_time:
                    seconds = float(returned[side])
                if row.without is not None:
                    seconds -= group[side].run(row.method, row.without)[0]
                if turn:
                    times[side].append(seconds / row.per)
        timed[row.name] = {side: Timed(statistics.median(times[side]), returned[side]) for side in times}
        told = ", ".join(f"{side} {found.seconds:.4g} s" for side, found in timed[row.name].items())
        print(f"{PROGRAM}: {row.name}: {told}", file=sys.stderr, flush=True)
    return timed


def compare(options: argparse.Namespace, folder: Path) -> list[Result]:
    """Load both sides, run every row, and set them side by side."""
    rows = wanted(cases.PRESETS[options.preset], options.only)
    sides = _SIDES if options.compare else _SIDES[:1]
    load: dict[str, float] = {}
    peak: dict[str, float] = {}
    timed: dict[str, dict[str, Timed]] = {row.name: {} for row in rows}
    for together in [[side] for side in sides] if options.one_at_a_time else [list(sides)]:
        with workers(together, folder, options) as group:
            for name, found in time_rows(group, rows, options.repeats).items():
                timed[name] |= found
            load |= {side: worker.load_seconds for side, worker in group.items()}
            peak |= {side: worker.peak_bytes for side, worker in group.items()}
    results = [_result("load", "s", load), _result("peak memory of the process", "bytes", peak)]
    for row in rows:
        seconds = {side: found.seconds for side, found in timed[row.name].items()}
        if row.of is None:
            results.append(_result(row.name, "s", seconds))
        else:
            results.append(_result(row.name, "x", {side: row.of / value for side, value in seconds.items()}))
            per_core = {side: row.of / value / options.threads for side, value in seconds.items()}
            results.append(_result(f"{row.name}; of one core", "x", per_core))
    return [
        *results,
        *_times_faster(results),
        *_same_words([timed[row.name] for row in rows if row.of is not None]),
    ]


def _times_faster(results: Sequence[Result]) -> list[Result]:
    """How many times faster a second question is than with nothing kept: of this side, which keeps prefixes."""
    ours = {row.name: row.ours for row in results}
    return [
        Result(f"{name}: times faster than with nothing kept", "x", ours[name + COLD] / value, None, None)
        for name, value in ours.items()
        if name + COLD in ours
    ]


def _same_words(jobs: Sequence[dict[str, Timed]]) -> list[Result]:
    """In how many clips each job's words are those that the port writes clip by clip, which the first job is."""
    if len(jobs) < 2 or "theirs" not in jobs[0]:
        return []
    right = jobs[0]["theirs"].returned
    results = []
    for job, how in zip(jobs, (ALONE, BATCHES), strict=True):
        same = {
            side: sum(one == other for one, other in zip(found.returned, right, strict=True))
            for side, found in job.items()
        }
        results.append(
            Result(
                f"clips whose words are those of the port {ALONE}; the port: {how}",
                "clips",
                same["ours"],
                same["theirs"],
                None,
            )
        )
    return results


def _result(name: str, unit: str, values: dict[str, float]) -> Result:
    ours, theirs = values["ours"], values.get("theirs")
    ratio = None if theirs is None else (ours / theirs if unit == "x" else theirs / ours)
    return Result(name, unit, ours, theirs, ratio)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import transformers

    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(results: Sequence[Result]) -> str:
    """Markdown."""

    def cell(value: float | None, unit: str) -> str:
        if value is None:
            return ""
        if unit == "bytes":
            return f"{value / 2**30:.2f} GiB"
        if unit == "clips":
            return f"{value:.0f}"
        if unit == "x":
            return f"{value:.1f}"
        return f"{value * 1000:.1f} ms" if value < 10 else f"{value:.1f} s"

    lines = ["| | phi4mm | transformers | times better |", "|---|---:|---:|---:|"]
    for row in results:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.name} | {cell(row.ours, row.unit)} | {cell(row.theirs, row.unit)} | {ratio} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Measure what the options of the command say, print the table and write the figures.

    Raises:
        Phi4MMError: one of the two sides ended.
        OSError: the model or the figures cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "model"
        if not folder.exists():
            cases.make_checkpoint(cases.PRESETS[options.preset], folder, getattr(torch, options.dtype))
        results = compare(options, folder)
    about = machine() | {name: getattr(options, name) for name in ("preset", "dtype", "quantize", "threads", "repeats")}
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n\n" + table(results))
    if options.json:
        report = {"machine": about, "rows": [asdict(row) for row in results]}
        with written_whole(options.json) as part:
            part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

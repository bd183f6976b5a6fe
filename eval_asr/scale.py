"""The same run on many machines: Ray Data hands batches to workers, one recogniser each; this process writes the rows.

The batches are those of a run in one process, cut here, and their rows come back in the same order, so the file is the
same, times aside. Only this process writes. A batch whose worker dies is recognised again by another; its rows come
back once, as Ray Data hands out each block once however often its task ran, and ``run_set`` adds no clip twice.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.data
import ray.exceptions

from eval_asr.backends import Recogniser
from eval_asr.clips import Clip
from eval_asr.errors import EvalError
from eval_asr.recognise import TranscribeAll, load_clips, recognise, warm_up
from eval_asr.results import Row
from phi4mm.errors import Phi4MMError

# Ray restarts workers without end; a batch that has taken down this many is what is wrong, not the machines.
_TRIES = 4


@dataclass(frozen=True)
class Cluster:
    """Ray, connected.

    Attributes:
        workers: recognisers at once.
        num_gpus: of each worker.
        num_cpus: of each worker.
    """

    workers: int
    num_gpus: float
    num_cpus: float

    def transcriber(self, load: Callable[[], Recogniser], language: str, warmup: int) -> TranscribeAll:
        """What ``run_set`` takes as ``transcribe_all``.

        Args:
            load: loads a recogniser; it is pickled and called in each worker.
            language: of the speech, as a two-letter code.
            warmup: batches that each worker recognises off the clock first.
        """

        def transcribe_all(batches: Iterable[list[Clip]]) -> Iterator[list[Row]]:
            return self._transcribe(list(batches), load, language, warmup)

        return transcribe_all

    def _transcribe(
        self, batches: list[list[Clip]], load: Callable[[], Recogniser], language: str, warmup: int
    ) -> Iterator[list[Row]]:
        if not batches:
            return
        workers = min(self.workers, len(batches))
        numbers = ray.data.from_items(
            [{"batch": number} for number in range(len(batches))], override_num_blocks=len(batches)
        )
        numbers.context.execution_options.preserve_order = True
        numbers.context.enable_progress_bars = False
        numbers.context.print_on_execution_start = False
        results = numbers.map(
            cast(Any, _Worker),  # Ray's hints know functions only
            fn_constructor_args=(
                load,
                language,
                ray.put(batches),
                warmup,
                ray.remote(num_cpus=0)(_Tries).remote(),
                os.getcwd(),
            ),
            # One batch waits while one is recognised: more would keep batches from workers that are free.
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_gpus=self.num_gpus,
            num_cpus=self.num_cpus,
        )
        try:
            for number, result in zip(range(len(batches)), results.iter_rows(), strict=True):
                if result["refused"]:
                    raise EvalError(result["refused"])
                if result["batch"] != number:
                    raise EvalError(f"Ray gave batch {result['batch']} for {number}; run the same command again")
                yield [Row.from_json(line) for line in result["rows"]]
        except ray.exceptions.RayError as error:
            raise EvalError(
                f"Ray stopped ({_last_line(error)}); the rows so far are kept: run the same command again"
            ) from error


class _Tries:
    """Counts how often each batch was begun; it outlives the workers."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, number: int) -> int:
        self.counts[number] += 1
        return self.counts[number]


class _Worker:
    """One process with one recogniser; Ray Data makes it and calls it with one batch's number at a time."""

    def __init__(
        self, load: Callable[[], Recogniser], language: str, batches: Any, warmup: int, tries: Any, folder: str
    ) -> None:
        with suppress(FileNotFoundError):  # on a machine without it, absolute paths alone are found
            os.chdir(folder)
        self.load = load
        self.language = language
        self.batches: list[list[Clip]] = ray.get(batches)
        self.warmup = warmup
        self.tries = tries
        self.recogniser: Recogniser | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["batch"])
        batch = self.batches[number]
        if ray.get(self.tries.add.remote(number)) > _TRIES:
            names = ", ".join(clip.audio_filepath for clip in batch)
            return _refusal(
                number,
                f"{_TRIES} workers died at one batch ({names}), as where memory runs out; the rows before it are kept: "
                "name another --out with a smaller --batch-size, or take the clips out",
            )
        try:
            rows = self._recognise(batch)
        except Phi4MMError as error:
            return _refusal(number, str(error))
        return {"batch": number, "rows": [row.to_json() for row in rows], "refused": ""}

    def _recognise(self, batch: list[Clip]) -> list[Row]:
        is_new = self.recogniser is None
        if self.recogniser is None:
            self.recogniser = self.load()
        loaded = load_clips(batch, self.recogniser.sampling_rate)
        if is_new:
            warm_up(self.recogniser, loaded, self.language, self.warmup)
        return recognise(self.recogniser, loaded, self.language)


def _refusal(number: int, reason: str) -> dict[str, Any]:
    return {"batch": number, "rows": [], "refused": reason}


@contextmanager
def ray_cluster(address: str, workers: int, *, device: str = "auto") -> Iterator[Cluster]:
    """Connect to Ray, or start it on this machine, while the context lasts.

    A worker gets a GPU of its own where the cluster has any and ``device`` is not "cpu"; without GPUs the processors
    are shared out.

    Args:
        address: "local", or of a running cluster: "auto", "host:6379", "ray://host:10001".
        workers: recognisers at once.
        device: where the recogniser runs, as the backends take it.

    Raises:
        EvalError: the cluster cannot be reached, or has too few GPUs or processors for the workers.
    """
    if workers < 1:
        raise EvalError(f"--workers is {workers}; expected 1 or more")
    local = address == "local"
    if local:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address=address, include_dashboard=False if local else None, logging_level=logging.ERROR)
    except Exception as error:  # a plain one where a part of it does not start in time
        raise EvalError(f"--ray {address}: cannot be reached ({_last_line(error)}); start it, or give local") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        resources = ray.cluster_resources()
        gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
        unit, there = ("GPU", gpus) if gpus and device != "cpu" else ("processor", cpus)
        if there < workers:
            raise EvalError(f"--workers is {workers}, but the cluster has {there:g} {unit}s; give {int(there)} at most")
        yield Cluster(workers, 1, 1) if unit == "GPU" else Cluster(workers, 0, int(cpus) // workers)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself tries for minutes to reach a machine that does not answer."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__

"""A run on two Ray workers, of which one is killed; a program of its own, as Ray keeps its process to itself.

    python -m tests.eval_asr.ray_job CORPUS OUT KILLED

The first worker to come to its second batch makes the file KILLED and kills itself as the system would for memory.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np

from eval_asr.recognise import LazyRecogniser
from eval_asr.run import RunOptions, run_set
from eval_asr.scale import ray_cluster
from eval_asr.sources import open_source
from tests.eval_asr.fakes import ToneRecogniser


class DyingRecogniser(ToneRecogniser):
    def __init__(self, killed: Path) -> None:
        super().__init__(seconds=0.05)
        self.killed = killed

    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
        if self.batches:
            try:
                self.killed.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                self.killed.write_text(str(os.getpid()), "utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().transcribe(clips, language)


def main(corpus: str, manifest: str, killed: str) -> None:
    load, source = partial(DyingRecogniser, Path(killed)), open_source(corpus)
    options = RunOptions(batch_size=3, progress=False)
    with ray_cluster("local", 2, device="cpu") as cluster:
        there = cluster.transcriber(load, source.language, warmup=0)
        print(run_set(LazyRecogniser(load, warmup=0), source, Path(manifest), options, there))


if __name__ == "__main__":
    main(*sys.argv[1:])

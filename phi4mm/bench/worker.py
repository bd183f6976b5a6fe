"""One side of the comparison: a process that runs rows as it is told, one line of JSON each way."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

import torch

from phi4mm.bench.cases import PRESETS


def main() -> None:
    """Load the model, then read ``{"method": ..., "arguments": [...]}`` and answer ``{"seconds": ...,
    "returned": ...}``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "theirs"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quantize")
    options = parser.parse_args()
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(options.threads)

    if options.side == "ours":
        from phi4mm.bench.ours import Ours as Side
    else:
        from phi4mm.bench.theirs import Theirs as Side  # type: ignore[assignment]
    start = time.perf_counter()
    side = Side.load(options.folder, PRESETS[options.preset], options.quantize)
    print(json.dumps({"seconds": time.perf_counter() - start}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        returned = getattr(side, order["method"])(*order["arguments"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "returned": returned}), file=answers)


def peak_bytes() -> int:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

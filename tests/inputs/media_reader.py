"""A program that reads media files that are handed to it, in bounded memory: a file may be made to end it.

It takes (kind, content) from standard input, pickled, reads the content as bytes and from a file whose path is its
argument, and answers with a line: how far the peak of this process's memory has risen, in MB, and how reading ended.
"""

from __future__ import annotations

import pickle
import resource
import sys
from pathlib import Path

from phi4mm.errors import AudioReadError, Phi4MMError
from phi4mm.inputs.audio import stream_audio
from phi4mm.inputs.image import load_image, prepare_image
from phi4mm.model.config import VisionConfig


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read(kind: str, source: bytes | Path) -> str:
    try:
        if kind == "audio":
            for part in stream_audio(source):
                assert part.samples.ndim == 1
        else:
            prepare_image(load_image(source), VisionConfig(image_size=56, patch_size=14, max_crops=6))
    except AudioReadError as error:
        return f"raised an error for a file that may be read another time: {error}"
    except Phi4MMError as error:
        message = str(error)
        return "error" if len(message) < 600 and message.isprintable() else f"message {message[:300]!r}"
    except BaseException as error:
        return f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return "read"


def main(file: Path) -> None:
    for kind, content in (("audio", b"RIFF"), ("picture", b"GIF8")):  # libraries are loaded
        read(kind, content)
    before = peak_memory()
    while True:
        try:
            kind, content = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        file.write_bytes(content)
        outcome, again = read(kind, content), read(kind, file)
        outcome = outcome if outcome == again else f"from bytes: {outcome}, from a file: {again}"
        print(f"{peak_memory() - before} {outcome}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

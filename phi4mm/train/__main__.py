"""Train the bundled checkpoint: a text decoder, which is then frozen; a speech tower, projector and adapter; a vision
tower, projector and adapter; the projector for spoken questions about pictures. A run that was stopped continues where
it stopped. It runs from a clone of the repository (pip install -e '.[train]'): phi4mm/train is not in the wheel."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from phi4mm.cli import exit_code

# The keys of ``stages.STAGES``, without torch.
STAGES = (
    "voices", "words", "features", "tokenizer", "decoder", "tower", "speech", "pictures", "vision", "spoken", "export",
    "measure", "samples", "card",
)  # fmt: skip
CORPORA = ("fsdd", "an4", "mini_librispeech", "easy_vqa")


def main() -> int:
    return exit_code("phi4mm.train", _run)


def _run() -> int:
    parser = argparse.ArgumentParser(prog="python -m phi4mm.train", description=__doc__)
    data = os.environ.get("PHI4MM_DATA")
    parser.add_argument("--data", type=Path, default=data, required=data is None,
                        help="folder with fsdd, an4, mini_librispeech, easy_vqa (default: $PHI4MM_DATA)")  # fmt: skip
    parser.add_argument(
        "--work", type=Path, required=True, help="results of the stages; an interrupted run continues from them"
    )
    parser.add_argument("--out", type=Path, required=True, help="where assets/ and adapters/ are written")
    parser.add_argument("--kokoro-styles", type=Path, help="the voices folder of npm's kokoro-js (default: no Kokoro)")
    parser.add_argument("--note", default="", help="a remark for the checkpoint's card")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: %(default)s")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE",
                        help=f"only these of: {', '.join(STAGES)}")  # fmt: skip
    arguments = parser.parse_args()
    missing = [name for name in CORPORA if not (arguments.data / name).is_dir()]
    if missing:
        parser.error(f"--data {arguments.data}: has no folder {', '.join(missing)}; expected {', '.join(CORPORA)}")
    import torch

    from phi4mm.train.recipe import Recipe
    from phi4mm.train.stages import run

    arguments.work.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(arguments.work / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    recipe = Recipe(
        data=arguments.data,
        work=arguments.work,
        out=arguments.out,
        kokoro_styles=arguments.kokoro_styles,
        note=arguments.note,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    run(recipe, arguments.stages, arguments.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())

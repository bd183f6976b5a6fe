"""``python -m phi4mm.train first --data DIR --work DIR --out DIR``: train the bundled checkpoint."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from phi4mm.train.first import STAGES, Recipe, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m phi4mm.train", description=__doc__)
    recipes = parser.add_subparsers(dest="recipe", required=True)
    first = recipes.add_parser("first", help="text backbone, speech tower, projector and speech adapter")
    first.add_argument("--data", type=Path, required=True, help="folder with fsdd, an4, mini_librispeech, easy_vqa")
    first.add_argument(
        "--work", type=Path, required=True, help="what the stages leave; an interrupted run goes on here"
    )
    first.add_argument("--out", type=Path, required=True, help="where assets/ and adapters/ are written")
    first.add_argument("--kokoro-styles", type=Path, help="the voices folder of npm's kokoro-js (default: no Kokoro)")
    first.add_argument("--note", default="", help="a remark for the checkpoint's card")
    first.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    first.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE",
                       help=f"only these of: {', '.join(STAGES)}")  # fmt: skip
    arguments = parser.parse_args()

    arguments.work.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(arguments.work / "train.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    recipe = Recipe(arguments.data, arguments.work, arguments.out, arguments.kokoro_styles, arguments.note)
    run(recipe, arguments.stages, arguments.threads)


if __name__ == "__main__":
    main()

"""A hook of mkdocs: pages of the repository that are not in docs/ become pages of the site, and links lead to them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent
ELSEWHERE = {  # page of the site -> file of the repository
    "start.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "bundled.md": "assets/README.md",
    "adapter-speech.md": "adapters/speech/README.md",
    "adapter-vision.md": "adapters/vision/README.md",
}
PAGES = {source: page for page, source in ELSEWHERE.items()}
LINK = re.compile(r"\]\(([\w./-]+)(#[\w-]+)?\)")
FENCE = re.compile(r"^(```\w+) .+$", re.MULTILINE)  # with a word for the tests, which mkdocs does not expect


def on_files(files: Any, config: Any) -> Any:
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = Path(ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link[1])).as_posix()
        return f"]({PAGES.get(target, target.removeprefix('docs/'))}{link[2] or ''})"

    return LINK.sub(moved, FENCE.sub(r"\1", markdown))

"""The examples of a page of documentation, run against a server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Page:
    """A page under docs/."""

    def __init__(self, name: str) -> None:
        self.name = f"docs/{name}"
        self.text = (ROOT / "docs" / name).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """The code blocks of a language."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)

    def run_python(self, url: str) -> None:
        """All blocks of Python, as one program in the repository's folder (the caller's, by ``chdir``)."""
        code = compile("\n".join(self.blocks("python")), self.name, "exec", dont_inherit=True)
        exec(code, {"URL": url})

    def run_curl(self, url: str) -> None:
        """Each command of shell: it succeeds and prints something."""
        for block in self.blocks("bash"):
            for command in re.split(r"\n(?=curl )", block.strip()):
                done = subprocess.run(
                    ["bash", "-ec", command.replace("curl -s ", "curl -sSf ")],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env={"URL": url, "PATH": "/usr/bin:/bin"},
                )
                assert done.returncode == 0, done.stderr
                assert done.stdout

    def unknown_options(self, known: str) -> list[str]:
        """The options in its text that are not among those known."""
        return [one for one in re.findall(r"--[a-z][a-z-]+", self.text) if one not in known]

"""What docs/serve-audio.md shows is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from phi4mm.serve.parser import make_parser
from tests.serve.conftest import Running

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "serve-audio.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_python(server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile("\n".join(blocks("python")), "docs/serve-audio.md", "exec", dont_inherit=True), {"URL": server.url})
    printed = capsys.readouterr().out
    assert printed.startswith("two four six eight")
    assert re.search(r"^\d\.\d\d \d\.\d\d eight$", printed, re.MULTILINE)
    assert "transcript: two four six eight" in printed
    assert re.search(r'weather \{"city": "(Rome|Oslo)"\}$', printed, re.MULTILINE)


def test_curl(server: Running) -> None:
    for block in blocks("bash"):
        for line in block.splitlines():
            done = subprocess.run(
                ["bash", "-ec", line.replace("curl -s ", "curl -sSf ")],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={"URL": server.url, "PATH": "/usr/bin:/bin"},
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout


def test_options_are_there() -> None:
    known = make_parser().format_help()
    assert [one for one in re.findall(r"--[a-z][a-z-]+", TEXT) if one not in known] == []

"""What docs/serve.md shows is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from phi4mm.bench.server import make_parser as bench_parser
from phi4mm.serve.parser import make_parser
from tests.serve.conftest import Running

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_python(server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile("\n".join(blocks("python")), "docs/serve.md", "exec", dont_inherit=True), {"URL": server.url})
    printed = capsys.readouterr().out
    assert "five" in printed
    assert "{'adapters': ['vision'], 'audio_projector': None}" in printed
    assert "['phi4mm', 'vision', 'speech']" in printed
    assert "weather" in printed


def test_curl(server: Running) -> None:
    for block in blocks("bash"):
        script = block.replace("curl -s ", "curl -sSf ")
        done = subprocess.run(
            ["bash", "-ec", script], capture_output=True, text=True, env={"URL": server.url, "PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_options_and_metrics_are_there(server: Running) -> None:
    parsers = make_parser().format_help() + bench_parser().format_help()
    known = f"{parsers} --no-cache-dir --create-home --help --requests --chat-template-kwargs"
    assert [one for one in re.findall(r"--[a-z][a-z-]+", TEXT) if one not in known] == []
    metrics = server.service.metrics.render().decode()
    section = TEXT.split("## Metrics")[1].split("##")[0]
    names = [one for one in re.findall(r"`([a-z0-9_]+)", section) if "_" in one]
    assert [name for name in names if f"phi4mm:{name.removesuffix('_total')}" not in metrics] == []

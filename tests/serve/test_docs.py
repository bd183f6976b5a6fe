"""What docs/serve.md shows is run."""

from __future__ import annotations

import re

import pytest

from phi4mm.bench.server import make_parser as bench_parser
from phi4mm.serve.parser import make_parser
from tests.serve.conftest import Running
from tests.serve.examples import ROOT, Page

PAGE = Page("serve.md")


def test_python(server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    PAGE.run_python(server.url)
    printed = capsys.readouterr().out
    assert "five" in printed
    assert "{'adapters': ['vision'], 'audio_projector': None}" in printed
    assert "['phi4mm', 'vision', 'speech']" in printed
    assert "weather" in printed


def test_curl(server: Running) -> None:
    PAGE.run_curl(server.url)


def test_options_and_metrics_are_there(server: Running) -> None:
    parsers = make_parser().format_help() + bench_parser().format_help()
    known = f"{parsers} --no-cache-dir --create-home --help --requests --chat-template-kwargs"
    assert PAGE.unknown_options(known) == []
    metrics = server.service.metrics.render().decode()
    section = PAGE.text.split("## Metrics")[1].split("##")[0]
    names = [one for one in re.findall(r"`([a-z0-9_]+)", section) if "_" in one]
    assert [name for name in names if f"phi4mm:{name.removesuffix('_total')}" not in metrics] == []

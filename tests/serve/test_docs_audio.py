"""What docs/serve-audio.md shows is run."""

from __future__ import annotations

import re

import pytest

from phi4mm.serve.parser import make_parser
from tests.serve.conftest import Running
from tests.serve.examples import ROOT, Page

PAGE = Page("serve-audio.md")


def test_python(server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    PAGE.run_python(server.url)
    printed = capsys.readouterr().out
    assert printed.startswith("two four six eight")
    assert re.search(r"^\d\.\d\d \d\.\d\d eight$", printed, re.MULTILINE)
    assert "transcript: two four six eight" in printed
    assert re.search(r'weather \{"city": "(Rome|Oslo)"\}$', printed, re.MULTILINE)


def test_curl(server: Running) -> None:
    PAGE.run_curl(server.url)


def test_options_are_there() -> None:
    assert PAGE.unknown_options(make_parser().format_help()) == []

"""The command line, the environment, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi4mm.errors import Phi4MMError
from phi4mm.serve.__main__ import main
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from phi4mm.serve.parser import make_parser, parse


def test_defaults() -> None:
    assert parse([], {}) == ServeOptions()


def test_the_command_line_goes_before_the_environment(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("three\n\n four \n")
    environment = {
        "PHI4MM_SERVE_PORT": "9000",
        "PHI4MM_SERVE_MAX_ROWS": "8",
        "PHI4MM_SERVE_MAX_N": "4",
        "PHI4MM_SERVE_ALLOW_URLS": "yes",
        "PHI4MM_SERVE_ALLOWED_DOMAIN": "a.example, b.example",
        "PHI4MM_SERVE_API_KEYS": "one,two",
        "PHI4MM_SERVE_ADMIN_KEY": "admin",
    }
    arguments = [
        "--port",
        "9001",
        "--api-key-file",
        str(keys),
        "--adapter",
        "mine=/a/b",
        "--adapters-root",
        str(tmp_path),
    ]
    found = parse(arguments, environment)
    assert found.port == 9001
    assert found.model.max_rows == 8
    assert found.model.adapters == {"mine": Path("/a/b")}
    assert found.limits == Limits(max_n=4)
    assert found.security.allow_urls
    assert found.security.allowed_domains == ("a.example", "b.example")
    assert found.security.api_keys == ("one", "two", "three", "four")
    assert found.security.admin_key == "admin"
    assert found.state_file == tmp_path / "loaded-adapters.json"
    assert "admin" not in repr(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-n", "0"], "max_n is 0"),
        (["--adapter", "mine"], "expected NAME=FOLDER"),
        (["--allowed-domain", "a.example"], "--allow-urls"),
        (["--tls-key", "a"], "go together"),
        (["--api-key-file", "/absent"], "cannot be read"),
        (["--drain-seconds", "0"], "--drain-seconds is 0"),
        (["--adapters-root", "/absent"], "no such folder"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Phi4MMError, match=words):
        parse(arguments, {})
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("phi4mm.serve: ")


def test_a_port_that_is_taken_shows_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "-1"]) == 1
    assert "cannot listen on 127.0.0.1, port -1" in capsys.readouterr().err


def test_help_is_in_groups() -> None:
    text = make_parser().format_help()
    for group in ("server", "model", "security", "limits"):
        assert f"\n{group}:" in text

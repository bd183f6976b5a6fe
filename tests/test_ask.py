"""``python -m phi4mm``: what it asks, and what it refuses before it loads a model."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phi4mm import Phi4MM, PromptError, Request, ask
from phi4mm import __main__ as command
from phi4mm.inputs.clip import Clip
from tests.media import picture


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        picture(9, 9).save(name)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that would be answered; no model is loaded."""
    requests: list[Request] = []
    monkeypatch.setattr(ask, "_answer", lambda request, options: requests.append(request) or 0)
    return requests


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes, *, terminal: bool = False) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal))


@pytest.mark.parametrize(
    ("arguments", "text", "num_images"),
    [
        (["What?", "--image", "a.png", "b.png"], "What?", 2),
        (["--image", "a.png", "b.png", "What is it?"], "What is it?", 2),
        (["--image", "a.png", "b.png", "describe", "--seed", "3"], "describe", 2),
        (["--image", "a.png", "--image", "b.png", "--", "What?"], "What?", 2),
        (["--image=a.png", "Is it 3.5 or 4?"], "Is it 3.5 or 4?", 1),
        (["--image", "a.png", "-"], "from input", 1),
        (["-"], "from input", 0),
        ([], "from input", 0),
        (["--image", "a.png", "b.png"], "", 2),
        (["x <|image_1|>", "--image", "a.png"], "x <|image_1|>", 1),
    ],
)
def test_questions(
    arguments: list[str],
    text: str,
    num_images: int,
    files: Path,
    asked: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin(monkeypatch, b"\xef\xbb\xbffrom input\r\n")
    assert command.main(arguments) == 0
    assert [(request.text, len(request.images)) for request in asked] == [(text, num_images)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the question is blank"),
        (["-"], "the question is blank"),
        ([""], "the question is blank"),
        ([" \n", "--image", "a.png"], "the question is blank"),
        (["What is <|image_1|>?"], "places <|image_1|>, but there is no image; add --image FILE"),
        (["<|audio_1|>", "--image", "a.png"], "there is no audio"),
        (["-", "--image", "-"], "name it once"),
        (["x", "--clip", "1-2"], "--clip takes a part of --audio"),
        (["x", "--clip", "2-1", "--audio", "a.wav"], "ends before it starts"),
        (["x", "--top-k", "-1"], "top_k is -1"),
        (["x", "--stop", ""], "stop is"),
    ],
)
def test_usage(
    arguments: list[str],
    words: str,
    files: Path,
    asked: list[Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(monkeypatch, b"")
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert asked == []


def test_nothing_is_read_from_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stdin(monkeypatch, b"x", terminal=True)
    with pytest.raises(SystemExit):
        command.main([])
    assert "ask something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--image", "gone.png"], "gone.png: there is no such file"),
        (["--image", "a.png", "gone.png", "what is it"], "gone.png: there is no such file"),
        (["x", "--image", "https://example.org//a.png"], "https://example.org//a.png: is a URL"),
        (["x", "--audio", "a.png"], "a.png: "),
    ],
)
def test_media_are_read_before_the_model(
    arguments: list[str], words: str, files: Path, asked: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"phi4mm: {words}")
    assert error.count("\n") == 1
    assert asked == []


def test_answers(
    tiny: Phi4MM, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Any] = []

    class Kept:
        submit = tiny.submit

        def __enter__(self) -> Kept:
            return self

        def __exit__(self, *error: object) -> None:
            pass

    def load(options: Any) -> Kept:
        loaded.append(options)
        return Kept()

    monkeypatch.setattr(ask, "load_model", load)
    arguments = ["What?", "--image", "a.png", "--max-new-tokens", "4", "--adapter", "none", "--quantize", "int8"]
    assert command.main(arguments) == 0
    plain = capsys.readouterr()
    assert plain.err == f"phi4mm: {ask.BUNDLED}\n"
    assert loaded[0].quantize == "int8"
    assert command.main([*arguments, "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    reply = json.loads(said.out)
    assert (reply["text"] + "\n", said.err) == (plain.out, "")
    assert reply["route"] == {"adapters": [], "audio_projector": None}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("phi4mm 0.")


@pytest.mark.parametrize(
    ("text", "clip"),
    [
        ("1.5-3", Clip(1.5, 3.0)),
        ("1:30-", Clip(90.0)),
        ("-10", Clip(0.0, 10.0)),
        (" 1:00:01 - 1:00:02.5", Clip(3601.0, 3602.5)),
    ],
)
def test_clips(text: str, clip: Clip) -> None:
    assert Clip.parse(text) == clip


@pytest.mark.parametrize("text", ["", "-", "5", "a-b", "3-1", "1-1", "\u0661-2", "1" * 10**6 + "-"])
def test_bad_clips(text: str) -> None:
    with pytest.raises(PromptError, match="clip"):
        Clip.parse(text)

"""``python -m phi4mm.asr`` and ``python -m phi4mm`` on the bundled checkpoint and its samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi4mm.__main__ import main as ask
from phi4mm.asr.__main__ import main as asr
from phi4mm.asr.command import BUNDLED

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "assets" / "samples"
ROWS = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text("utf-8").splitlines()]
FILES = [str(SAMPLES / row["audio_filepath"]) for row in ROWS]


def test_samples_are_transcribed_as_their_manifest_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert asr(FILES) == 0
    said, told = capsys.readouterr()
    assert said.splitlines() == [f"{file}: {row['text']}" for file, row in zip(FILES, ROWS, strict=True)]
    assert told == f"phi4mm.asr: {BUNDLED}\n"
    assert asr([*FILES[:2], "--no-filename", "--quiet"]) == 0
    assert capsys.readouterr() == (f"{ROWS[0]['text']}\n{ROWS[1]['text']}\n", "")


def test_a_bad_file_is_one_line_and_the_others_come_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "page.wav"
    bad.write_text("<html>Not found</html>")
    assert asr([FILES[0], str(bad), str(tmp_path / "gone.wav"), FILES[1], "--quiet", "--no-filename"]) == 1
    said, told = capsys.readouterr()
    assert said.splitlines() == [ROWS[0]["text"], "", "", ROWS[1]["text"]]
    assert len(told.splitlines()) == 2
    assert "gone.wav" in told.splitlines()[0]  # before the model is loaded
    assert f"{bad}: " in told.splitlines()[1]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert asr(["--json", FILES[0]]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["audio_filepath"] == FILES[0]
    assert row["text"] == ROWS[0]["text"]
    (segment,) = row["segments"]
    assert 0 <= segment["start"] < segment["end"] <= row["duration"]
    assert segment["text"] == row["text"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x.wav", "--task", "transcribe", "--to", "German"],
        ["x.wav", "--task", "translate"],
        ["x.wav", "--dtype", "int3"],
    ],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        asr(arguments)
    assert caught.value.code == 2
    assert "usage: python -m phi4mm.asr" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--model", "no/such/folder/here"], ["--device", "abacus"]])
def test_a_model_that_is_not_available(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert asr([FILES[0], *option]) == 1
    said, told = capsys.readouterr()
    assert said == ""
    assert len(told.splitlines()) == 1
    assert option[1] in told


def test_ask_streams_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(["Transcribe the audio clip into text.", "--audio", FILES[0]]) == 0
    assert capsys.readouterr().out == ROWS[0]["text"] + "\n"
    assert ask(["Hello", "--image", "no/such.png"]) == 1
    assert "no/such.png" in capsys.readouterr().err
    for wrong in ([], ["Hello", "--temperature", "-1"], ["Hello", "--top-p", "2"]):
        with pytest.raises(SystemExit) as caught:
            ask(wrong)
        assert caught.value.code == 2


def test_as_a_program_from_another_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "phi4mm.asr", "--quiet", FILES[0]]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, ROWS[0]["text"] + "\n", "")

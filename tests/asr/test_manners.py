"""The command as a process: signals, closed and narrow streams, full disks, odd names; and what is left after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from phi4mm.asr import command
from phi4mm.asr.__main__ import main
from phi4mm.asr.outputs import FileOutput, partial_path
from phi4mm.transcription.writers import FORMATS, Lines, writers
from phi4mm.types import Segment, Transcript

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "assets" / "samples"
DIGIT = str(SAMPLES / "digit.flac")
SEGMENTS = [Segment(0.0, 1.0, "one"), Segment(2.0, 3.0, "two größer"), Segment(4.0, 5.0, "three")]


def start(*arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "phi4mm.asr", *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.Popen(program, **{**streams, "env": environment})


def shell(line: str, **environment: str) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a command line; ``ASR`` in it is the command."""
    line = line.replace("ASR", f"{sys.executable} -m phi4mm.asr --quiet")
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, check=False, timeout=120)
    return ended.returncode, ended.stdout, ended.stderr


def handles(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether a process has set a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="tells by /proc when handlers are set")
@pytest.mark.parametrize("wait", [0.0, 0.4, 0.8])
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted"),
                                                      (signal.SIGTERM, 143, b"terminated")])  # fmt: skip
def test_a_signal_while_it_starts(wait: float, number: int, code: int, word: bytes) -> None:
    process = start("-", "--quiet", stdin=subprocess.PIPE)
    while not handles(process, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(wait)  # in which it imports and loads
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, b"phi4mm.asr: " + word + b"\n")


def long_recording(path: Path, phrases: int = 40) -> Path:
    samples, rate = soundfile.read(SAMPLES / "three_digits.flac", dtype="float32")
    pause = np.zeros(2 * rate, np.float32)
    soundfile.write(path, np.concatenate([samples, pause] * phrases), rate)
    return path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_what_was_decoded_stays(number: int, code: int, tmp_path: Path) -> None:
    file, out = long_recording(tmp_path / "talk.wav"), tmp_path / "out"
    arguments = ("--format", "srt,json", "--output-dir", str(out), "--batch-size", "1", "--quiet")
    process = start(str(file), *arguments)
    srt, partial = out / "talk.srt.partial", out / "talk.json.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_bytes().count(b'"start"') >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    kept = json.loads(partial.read_text("utf-8"))
    assert kept["partial"] is True
    assert 2 <= len(kept["segments"]) < 40
    assert srt.read_text("utf-8").count("three five nine") in (len(kept["segments"]), len(kept["segments"]) + 1)
    assert sorted(path.name for path in out.iterdir()) == ["talk.json.partial", "talk.srt.partial"]
    if number != signal.SIGKILL:
        (line,) = told.decode().splitlines()
        assert f"; {file} is partial: " in line
        assert str(partial) in line


def test_a_pipe_is_transcribed_before_it_ends(tmp_path: Path) -> None:
    content = long_recording(tmp_path / "talk.wav", 8).read_bytes()
    process = start("-", "--batch-size", "1", "--quiet", stdin=subprocess.PIPE, env={"TMPDIR": str(tmp_path)})
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(content[:-1000])  # the rest never comes
    process.stdin.flush()
    assert process.stdout.read(31) == b"three five nine three five nine"
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"terminated; standard input is partial" in told
    assert {path.name for path in tmp_path.iterdir()} - {".ses"} == {"talk.wav"}  # .ses is onnxruntime's


@pytest.mark.slow
def test_streams_that_are_narrow_closed_or_full(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/gr\xc3\xb6\xc3\x9fer \xff.flac"
    with open(name, "wb") as file:
        file.write(Path(DIGIT).read_bytes())
    folder = str(tmp_path)
    commands = [
        (f"ASR {folder} {DIGIT}", {"PYTHONIOENCODING": "ascii"}),
        (f"ASR --json {folder}", {"PYTHONIOENCODING": "ascii"}),
        (f"ASR --output-dir {folder}/out {folder}", {}),
        (f"ASR {DIGIT} 2>&-", {}),
        (f"ASR {DIGIT} >&-", {}),
        (f"ASR {DIGIT} > /dev/full", {}),
        (f"ASR {DIGIT} {DIGIT} | true", {}),
    ]
    with ThreadPoolExecutor(2) as threads:  # which wait for the commands
        narrow, json_lines, files, deaf, closed, full, piped = threads.map(
            lambda one: shell(one[0], **one[1]), commands
        )
    shown = folder.encode() + rb"/gr\xf6\xdfer \udcff.flac: seven" + f"\n{DIGIT}: seven\n".encode()
    assert narrow == (0, shown, b"")
    assert json.loads(json_lines[1])["audio_filepath"].endswith("größer \udcff.flac")
    assert files[0] == 0
    assert os.listdir(os.fsencode(f"{folder}/out")) == [b"gr\xc3\xb6\xc3\x9fer \xff.txt"]
    assert deaf == (0, b"seven\n", b"")
    assert closed == (1, b"", b"phi4mm.asr: standard output: Bad file descriptor\n")
    assert full == (1, b"", b"phi4mm.asr: standard output: No space left on device\n")
    assert (piped[0], piped[2]) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gone.wav"], "gone.wav: there is no such file"),
        (["page.wav", "gone.wav"], "page.wav: is not audio"),
        (["https://example.org/a.wav"], "is a URL"),
        ([DIGIT, "--output-dir", "page.wav"], "is a file, expected a folder"),
        ([DIGIT, "--output-dir", "page.wav/out"], "is a file, expected a folder"),
        ([DIGIT, "--output-dir", "/proc"], "nothing can be written there"),
        ([DIGIT, "--output-dir", "/proc/x/y"], "nothing can be written there"),
    ],
)
def test_what_is_wrong_is_found_before_the_model_is_loaded(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.wav").write_text("<html>")
    monkeypatch.setattr(command, "load_model", lambda options: pytest.fail("loaded"))
    assert main(arguments) == 1
    told = capsys.readouterr().err.splitlines()
    assert expected in told[0]
    assert len(told) == (2 if "page.wav" in arguments and "gone.wav" in arguments else 1)


@pytest.mark.parametrize("extension", FORMATS)
def test_a_growing_file_is_readable_at_any_time_and_gives_way_to_the_whole_one(extension: str, tmp_path: Path) -> None:
    (writer,) = writers([extension], Lines())
    path = tmp_path / "deep" / f"talk.{extension}"
    output = FileOutput(writer, path)
    for count, segment in enumerate(SEGMENTS, 1):
        output.add(segment)
        part = partial_path(path).read_text("utf-8")
        if extension == "json":
            assert [one["text"] for one in json.loads(part)["segments"]] == [one.text for one in SEGMENTS[:count]]
        else:
            assert part == writer.render(Transcript.of(SEGMENTS[:count], 5.0))
    assert output.cut(Transcript.of(SEGMENTS, 5.0), None) == f"in {partial_path(path)}"
    assert list(path.parent.iterdir()) == [partial_path(path)]
    output.end(Transcript.of(SEGMENTS, 5.0))
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text("utf-8") == writer.render(Transcript.of(SEGMENTS, 5.0))


@pytest.mark.parametrize("stem", ["x" * 247, "ü" * 123, "x" * 252])
def test_the_longest_names_cost_at_most_themselves(stem: str, tmp_path: Path) -> None:
    (writer,) = writers(["txt"], Lines())
    path = tmp_path / f"{stem}.txt"
    output = FileOutput(writer, path)
    output.add(SEGMENTS[0])
    if len(stem) > 251:
        with pytest.raises(OSError, match=r"too long.*xxx.txt"):
            output.end(Transcript.of(SEGMENTS[:1], 5.0))
    else:
        output.end(Transcript.of(SEGMENTS[:1], 5.0))
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

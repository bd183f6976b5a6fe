"""Whatever comes as a form, a live message or a response's input, the answer is an answer or an error object below 500.

``--hypothesis-profile=thorough`` tries 1,000 of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from tests.serve.conftest import SAMPLES, Running, running, wait_until
from tests.serve.test_hostile import JSON_TYPE, PARTS, TEXTS, VALUES
from tests.serve.test_realtime import blocks, pcm, websocket

CLIP = (SAMPLES / "digit.flac").read_bytes()
WAV = (SAMPLES / "stereo_44khz.wav").read_bytes()
NAMES = (
    "model", "language", "prompt", "instruction", "response_format", "temperature", "timestamp_granularities[]",
    "timestamp_granularities", "include[]", "keywords[]", "hotwords", "stream", "chunking_strategy",
    "chunking_strategy[type]", "chunking_strategy[threshold]", "seed", "to", "file[]", "model[]", "temperature[a]",
    "known_speaker_names[]", "known_speaker_references[]", "[]", "a[b][c]", "file",
)  # fmt: skip
GOOD = (
    "phi4mm",
    "json",
    "text",
    "srt",
    "vtt",
    "verbose_json",
    "word",
    "segment",
    "true",
    "0.5",
    "auto",
    "logprobs",
    "en",
)
PLAIN = st.text(max_size=40).map(lambda text: text.replace("\r", "").replace("\n", ""))
FIELDS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(GOOD) | PLAIN | st.just("<|audio_2|>") | st.just("9" * 5000)),
    max_size=5,
)
FILES = st.one_of(
    st.binary(max_size=300),
    st.integers(0, len(CLIP)).map(lambda size: CLIP[:size]),
    st.tuples(st.integers(0, len(WAV) - 1), st.binary(min_size=1, max_size=8)).map(
        lambda place: WAV[: place[0]] + place[1] + WAV[place[0] + len(place[1]) :]
    ),
)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def target(bundled: Phi4MM) -> Iterator[Running]:
    with running(bundled, ServeOptions(limits=Limits(max_output_tokens=2, max_upload_seconds=30.0))) as server:
        yield server
        wait_until(lambda: server.service.admission.num_requests == 0)
        stats = server.service.model.stats()
        assert stats.running == stats.waiting == 0


@pytest.fixture(scope="module")
def http(target: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=target.url, timeout=60) as client:
        yield client


def check(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["error"]["message"], str)


@SETTINGS
@given(fields=FIELDS, file=FILES, translation=st.booleans())
def test_forms(http: httpx2.Client, fields: list[tuple[str, str]], file: bytes, translation: bool) -> None:
    path = "translations" if translation else "transcriptions"
    parts: list[Any] = [("file", ("x.wav", file)), *((name, (None, value)) for name, value in fields)]
    check(http.post(f"/v1/audio/{path}", files=parts))


@SETTINGS
@given(body=st.binary(max_size=400), boundary=st.sampled_from(["x", "", "x" * 80, '"x"']), cut=st.integers(0, 400))
def test_bodies_that_are_no_forms(http: httpx2.Client, body: bytes, boundary: str, cut: int) -> None:
    whole = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + body + b"\r\n--x--\r\n"
    check(
        http.post(
            "/v1/audio/transcriptions",
            content=whole[:cut],
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
        )
    )


@SETTINGS
@given(
    body=st.fixed_dictionaries(
        {
            "input": TEXTS
            | st.lists(PARTS | st.fixed_dictionaries({"role": st.just("user"), "content": PARTS}), max_size=3)
        },
        optional=dict.fromkeys(
            ("instructions", "tools", "tool_choice", "text", "include", "metadata", "stream"), VALUES
        ),
    )
)
def test_responses(http: httpx2.Client, body: dict[str, Any]) -> None:
    try:
        content = json.dumps(body)
    except ValueError:
        content = "{"
    check(http.post("/v1/responses", content=content.encode("utf-8", "surrogatepass"), headers=JSON_TYPE))


EVENTS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["session.update", "input_audio_buffer.append", "input_audio_buffer.commit"])},
        optional={
            "audio": st.sampled_from(["", "AAAA", "AAAAAAAA", "////"]) | VALUES,
            "event_id": VALUES,
            "session": VALUES
            | st.fixed_dictionaries(
                {
                    "audio": st.fixed_dictionaries(
                        {},
                        optional={
                            "input": st.dictionaries(
                                st.sampled_from(["format", "transcription", "turn_detection"]),
                                VALUES
                                | st.dictionaries(
                                    st.sampled_from(["type", "rate", "model", "prompt", "threshold", "keywords"]),
                                    VALUES,
                                ),
                            )
                        },
                    )
                }
            ),
        },
    ),
)


@pytest.fixture(scope="module")
def live(target: Running) -> Iterator[ClientConnection]:
    with websocket(target) as socket:
        socket.recv()
        yield socket
        # The session still works.
        socket.send(json.dumps({"type": "input_audio_buffer.clear"}))
        good = {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": {"model": None, "prompt": None}}
        good |= {"turn_detection": None}
        socket.send(json.dumps({"type": "session.update", "session": {"audio": {"input": good}, "include": []}}))
        for block in blocks(pcm()):
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": block}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while not (kind := json.loads(socket.recv(timeout=30))["type"]).endswith("completed"):
            assert not kind.endswith("failed")


@SETTINGS
@given(message=EVENTS)
def test_live_messages(live: ClientConnection, message: Any) -> None:
    try:
        text = json.dumps(message)
        text.encode()
    except ValueError:
        return
    live.send(text)
    live.send(json.dumps({"type": "input_audio_buffer.clear"}))
    while (event := json.loads(live.recv(timeout=10)))["type"] != "input_audio_buffer.cleared":
        if event["type"] == "error":
            assert event["error"]["type"] != "server_error", event
            assert isinstance(event["error"]["message"], str)

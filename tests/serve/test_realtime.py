"""Live transcription by OpenAI's realtime client and by a plain websocket, over a real server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import Security, ServeOptions
from tests.serve.conftest import SAMPLES, Running, running, wait_until

CLIP = SAMPLES / "eight_digits.flac"
BLOCK = 0.1  # seconds


def pcm(name: str = "eight_digits.flac", *, rate: int = 24_000, silence: float = 1.0) -> bytes:
    """A clip between silences, as 16-bit samples."""
    samples, before = soundfile.read(SAMPLES / name, dtype="float32")
    resampled = soxr.resample(samples, before, rate)
    quiet = np.zeros(round(silence * rate), np.float32)
    return (np.concatenate((quiet, resampled, quiet)) * 32767).astype("<i2").tobytes()


def blocks(audio: bytes, rate: int = 24_000) -> Iterator[str]:
    """Base64 of a tenth of a second each."""
    size = 2 * round(BLOCK * rate)
    for at in range(0, len(audio), size):
        yield base64.b64encode(audio[at : at + size]).decode()


@contextmanager
def connected(server: Running) -> Iterator[RealtimeConnection]:
    with server.client().realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        yield connection


def until(connection: RealtimeConnection, kind: str) -> list[Any]:
    """The events up to the first one of a kind."""
    events: list[Any] = []
    while not events or events[-1].type != kind:
        events.append(connection.recv())
        assert events[-1].type not in ("error", FAILED), events[-1]
    return events


DONE = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"
DELTA = "conversation.item.input_audio_transcription.delta"


def test_turns_are_found_and_transcribed(server: Running, bundled: Phi4MM) -> None:
    expected = bundled.transcribe(CLIP).text
    with connected(server) as connection:
        for _ in range(2):
            for block in blocks(pcm()):
                connection.input_audio_buffer.append(audio=block)
        first, second = until(connection, DONE), until(connection, DONE)
    kinds = [event.type for event in first if event.type != DELTA]
    assert kinds[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    assert len({event.item_id for event in first if event.type in (DELTA, DONE)}) == 1
    started, stopped = first[0], next(event for event in first if event.type.endswith("speech_stopped"))
    assert 500 <= started.audio_start_ms <= 1500
    assert stopped.audio_end_ms > started.audio_start_ms + 1000
    for events in (first, second):
        assert events[-1].transcript == expected
        assert events[-1].usage.type == "tokens"
    committed = [event for event in (*first, *second) if event.type == "input_audio_buffer.committed"]
    assert committed[1].previous_item_id == committed[0].item_id


def test_partial_transcripts_come_while_it_is_spoken(server: Running) -> None:
    """What is shown before a turn's end is the beginning of its transcript."""
    patient: Any = {"type": "transcription", "audio": {"input": {"turn_detection": {"silence_duration_ms": 30_000}}}}
    quiet = base64.b64encode(bytes(2400 * 2)).decode()

    async def listen() -> tuple[list[str], str]:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(session=patient)
            shown = asyncio.Event()

            async def speak() -> None:
                for block in blocks(pcm()):
                    await connection.input_audio_buffer.append(audio=block)
                    await asyncio.sleep(BLOCK / 3)
                for _ in range(200):  # nothing is said any more, but the turn is open
                    if shown.is_set():
                        break
                    await connection.input_audio_buffer.append(audio=quiet)
                    await asyncio.sleep(BLOCK)
                await connection.input_audio_buffer.commit()

            speaking = asyncio.ensure_future(speak())
            deltas: list[str] = []
            async for event in connection:
                if event.type == DELTA:
                    deltas.append(event.delta or "")
                    shown.set()
                elif event.type == "input_audio_buffer.committed":
                    assert deltas
                elif event.type == DONE:
                    await speaking
                    return deltas, event.transcript
        raise AssertionError("the connection ended")

    deltas, transcript = asyncio.run(listen())
    assert "".join(deltas) == transcript


def test_the_client_commits(server: Running, bundled: Phi4MM) -> None:
    update: Any = {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 16_000},
                "transcription": {"model": "phi4mm", "language": "en", "keywords": ["nine"]},
                "turn_detection": None,
            }
        },
        "include": ["item.input_audio_transcription.logprobs"],
    }
    expected = bundled.transcribe(CLIP, hotwords=["nine"]).text
    with connected(server) as connection:
        connection.session.update(session=update)
        [updated] = until(connection, "session.updated")
        assert updated.session.audio.input.turn_detection is None
        for block in blocks(pcm(rate=16_000, silence=0.3), 16_000):
            connection.input_audio_buffer.append(audio=block)
        connection.input_audio_buffer.clear()
        until(connection, "input_audio_buffer.cleared")
        for block in blocks(pcm(rate=16_000, silence=0.3), 16_000):
            connection.input_audio_buffer.append(audio=block)
        connection.input_audio_buffer.commit()
        committed, *events = until(connection, DONE)
    assert committed.type == "input_audio_buffer.committed"
    *deltas, done = events
    assert {event.type for event in deltas} == {DELTA}
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas) == done.transcript == expected
    assert done.logprobs
    assert all(event.logprobs for event in deltas)


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_audio(server: Running, bundled: Phi4MM, kind: str) -> None:
    import av

    samples, rate = soundfile.read(SAMPLES / "telephone_8khz.flac", dtype="float32")
    assert rate == 8000
    codec = av.CodecContext.create("pcm_mulaw" if kind == "audio/pcmu" else "pcm_alaw", "w")
    codec.sample_rate, codec.layout, codec.format = 8000, "mono", "s16"  # type: ignore[attr-defined]
    frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate = 8000
    encoded = b"".join(bytes(packet) for packet in codec.encode(frame))  # type: ignore[attr-defined]
    session: Any = {"type": "transcription", "audio": {"input": {"format": {"type": kind}, "turn_detection": None}}}
    with connected(server) as connection:
        connection.session.update(session=session)
        connection.input_audio_buffer.append(audio=base64.b64encode(encoded).decode())
        connection.input_audio_buffer.commit()
        *_, done = until(connection, DONE)
    assert done.transcript == bundled.transcribe(SAMPLES / "telephone_8khz.flac").text


def test_what_is_wrong_is_reported_and_the_session_goes_on(server: Running, bundled: Phi4MM) -> None:
    cases: list[tuple[Any, str | None]] = [
        ("no JSON", None),
        ([1], None),
        ({"type": "response.create", "event_id": "mine"}, "type"),
        ({"type": "session.update"}, "session"),
        ({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 7}}}}}, "audio"),
        ({"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "x"}}}}}, "model"),
        ({"type": "input_audio_buffer.append", "audio": "!"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": 7}, "audio"),
        ({"type": "input_audio_buffer.commit"}, None),
    ]
    with websocket(server) as socket:
        assert json.loads(socket.recv())["type"] == "session.created"
        for message, param in cases:
            socket.send(message if isinstance(message, str) else json.dumps(message))
            event = json.loads(socket.recv(timeout=10))
            assert event["type"] == "error", (message, event)
            assert event["error"]["message"]
            assert event["error"]["param"] == param, (message, event)
            assert event["error"]["event_id"] == (message.get("event_id") if isinstance(message, dict) else None)
        socket.send(b"binary")
        assert json.loads(socket.recv(timeout=10))["type"] == "error"
        for block in blocks(pcm()):
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": block}))
        while (event := json.loads(socket.recv(timeout=30)))["type"] != DONE:
            assert event["type"] != "error"
    assert event["transcript"] == bundled.transcribe(CLIP).text


def websocket(server: Running, query: str = "intent=transcription", **options: Any) -> ClientConnection:
    return connect(f"{server.url.replace('http', 'ws')}/v1/realtime?{query}", **options)


@pytest.mark.parametrize(("query", "status"), [("intent=conversation", 400), ("model=nobody", 404)])
def test_connections_that_are_refused(server: Running, query: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as caught, websocket(server, query):
        pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["error"]["message"]


def test_keys_and_limits(bundled: Phi4MM) -> None:
    options = ServeOptions(
        security=Security(api_keys=("right",)), limits=Limits(max_live_sessions=1, max_live_seconds=1.0)
    )
    with running(bundled, options) as server:
        with pytest.raises(InvalidStatus) as caught, websocket(server):
            pass
        assert caught.value.response.status_code == 401
        with websocket(server, subprotocols=["realtime", "openai-insecure-api-key.right"]) as socket:
            assert socket.subprotocol == "realtime"
            header = {"authorization": "Bearer right"}
            with pytest.raises(InvalidStatus) as caught, websocket(server, additional_headers=header):
                pass
            assert caught.value.response.status_code == 429
            socket.recv()
            socket.send(
                json.dumps({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}})
            )
            socket.recv()
            audio = base64.b64encode(bytes(100_000)).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            assert json.loads(socket.recv(timeout=10))["error"]["code"] == "input_audio_buffer_full"
        wait_until(lambda: server.service.admission._num_live == 0)


def test_a_client_that_goes_away_ends_its_rows(server: Running) -> None:
    with websocket(server) as socket:
        socket.send(json.dumps({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}))
        for block in blocks(pcm() * 20):
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": block}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while json.loads(socket.recv(timeout=30))["type"] != "input_audio_buffer.committed":
            pass

    def idle() -> bool:
        stats = server.service.model.stats()
        return server.service.admission.num_requests == 0 and stats.running == stats.waiting == 0

    wait_until(idle, 5)

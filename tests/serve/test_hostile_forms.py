"""Whatever comes as a form, the answer is an answer or an error object below 500, and the server then still answers.

``--hypothesis-profile=thorough`` tries 1,000 requests.
"""

from __future__ import annotations

import io
import socket
import struct
import time
import wave
import zipfile
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ServeOptions
from tests.serve.conftest import SAMPLES, Running, running, wait_until
from tests.serve.test_hostile import CONTROL, HOSTILE, check, png_bomb

MARK = b"a-boundary"
FORM_TYPE = {"content-type": f"multipart/form-data; boundary={MARK.decode()}"}


@pytest.fixture(scope="module")
def target(bundled: Phi4MM) -> Iterator[Running]:
    limits = Limits(max_upload_bytes=1 << 20, max_upload_seconds=20.0, upload_seconds=0.7, max_prompt_tokens=2000)
    with running(bundled, ServeOptions(limits=limits)) as server:
        yield server


def zip_bomb() -> bytes:
    """Ten megabytes of zeros in ten kilobytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(10 << 20))
    return file.getvalue()


def wav(num_samples: int, rate: int = 16000, channels: int = 1, claimed: int | None = None) -> bytes:
    """Silence; ``claimed`` bytes of it by the header."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(2 * num_samples * channels))
    content = bytearray(file.getvalue())
    if claimed is not None:
        content[40:44] = struct.pack("<I", claimed)
    return bytes(content)


FILES = (
    st.binary(max_size=200)
    | st.sampled_from(
        [
            b"",
            zip_bomb(),
            png_bomb(60_000, 60_000).encode(),
            wav(0),
            wav(1),
            wav(800),
            wav(800, rate=1),
            wav(100, rate=2**31 - 1),
            wav(100, channels=200),
            wav(800, claimed=2**32 - 1),
            wav(400_000),  # over the seconds that are taken
            wav(16_000)[:-7],
            (SAMPLES / "digit.flac").read_bytes()[:900],
            (SAMPLES / "compressed.mp3").read_bytes()[:500],
            b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n",
            b"ffconcat version 1.0\nfile /etc/passwd\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        ]
    )
)
FIELDS = """
    file model language prompt response_format temperature stream seed to keywords[] keywords[0] hotwords
    timestamp_granularities[] timestamp_granularities include[] chunking_strategy chunking_strategy[type]
    known_speaker_names[] known_speaker_references[] instruction file[] [] x
"""
WORDS = "json text srt vtt verbose_json diarized_json word segment logprobs true false 1e999 nan -1 en auto"
NAMES = st.sampled_from(FIELDS.split()) | st.text(max_size=12)
VALUES = (
    st.text(max_size=40)
    | st.sampled_from(CONTROL)
    | st.sampled_from(WORDS.split())
    | st.sampled_from(["9" * 5000, "a " * 20_000, "\ud7ff" * 2000, "data:audio/wav;base64,===="])
)
NAMED_FILES = st.sampled_from([None, "a.wav", "../../../etc/passwd", "\\\\host\\a", "a\0b", "a" * 5000, ""])
PARTS = st.lists(st.tuples(NAMES, NAMED_FILES, FILES | VALUES.map(str.encode)), max_size=6)
PATHS = st.sampled_from(["/v1/audio/transcriptions", "/v1/audio/translations"])


def part(name: str, filename: str | None, content: bytes) -> bytes:
    shown = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return b"--" + MARK + b"\r\nContent-Disposition: " + shown.encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    return b"".join(part(*one) for one in parts) + b"--" + MARK + b"--\r\n"


@HOSTILE
@given(file=FILES, parts=PARTS, path=PATHS, cut=st.none() | st.integers(-40, 2000))
def test_hostile_forms(
    target: Running, file: bytes, parts: list[tuple[str, str | None, bytes]], path: str, cut: int | None
) -> None:
    content = form(("file", "a.wav", file), *parts)[:cut]
    check(httpx2.post(target.url + path, content=content, headers=FORM_TYPE, timeout=60))


@HOSTILE
@given(
    content=st.binary(max_size=300),
    path=PATHS,
    kind=st.sampled_from(["", "; boundary=", '; boundary="', "; boundary=é"]),
)
def test_hostile_bytes(target: Running, content: bytes, path: str, kind: str) -> None:
    headers = {"content-type": f"multipart/form-data{kind}".encode("latin-1")}
    check(httpx2.post(target.url + path, content=content, headers=headers, timeout=30))


def test_forms_that_are_too_large(target: Running) -> None:
    url = f"{target.url}/v1/audio/transcriptions"
    clip = ("file", "a.wav", wav(16_000))
    for content in (
        form(("file", "a.wav", bytes(2 << 20))),
        form(clip, *((f"field{index}", None, b"x") for index in range(1100))),
        form(clip, *(("file", "b.wav", wav(10)) for _ in range(3))),
        form(clip, ("prompt", None, b"a" * (3 << 20))),
        form(clip, ("prompt", None, b"one two three " * 20_000)),
        b"--" + MARK + b"\r\n" + b"X-Header: a\r\n" * 50_000,
    ):
        answer = httpx2.post(url, content=content, headers=FORM_TYPE, timeout=60)
        check(answer)
        assert answer.status_code >= 400


def test_slow_and_cut_forms(target: Running) -> None:
    """A sender that is slow, or goes, takes no place for longer than a body may take."""
    host, port = target.url.removeprefix("http://").split(":")
    body = form(("file", "a.wav", wav(16_000)))
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {FORM_TYPE['content-type']}\r\n\r\n"
    ).encode()
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(head)
        for index in range(4):
            slow.sendall(body[index : index + 1])
            time.sleep(0.05)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    for size in (0, 10, 100, len(body) - 1):
        with socket.create_connection((host, int(port)), timeout=20) as gone:
            gone.sendall(head + body[:size])
    wait_until(lambda: target.service.admission.num_requests == 0)


def test_the_server_still_answers(target: Running) -> None:
    content = form(("file", "a.flac", (SAMPLES / "digit.flac").read_bytes()), ("response_format", None, b"text"))
    answer = httpx2.post(f"{target.url}/v1/audio/transcriptions", content=content, headers=FORM_TYPE, timeout=60)
    assert answer.status_code == 200
    wait_until(lambda: target.service.admission.num_requests == 0)
    wait_until(lambda: target.service.model.stats().running == 0)

"""Two replicas of the bundled checkpoint on this machine: what clients see, also when one is killed."""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import soundfile
import soxr
import yaml
from openai import APIError, OpenAI
from websockets.exceptions import ConnectionClosed

from phi4mm.api import Phi4MM
from phi4mm.errors import Phi4MMError
from phi4mm.serve.cluster.relay import PART_BYTES
from phi4mm.serve.parser import make_parser
from tests.serve.conftest import SAMPLES, wait_until

pytest.importorskip("ray.serve")
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).parent.parent.parent
ADMIN = {"authorization": "Bearer admin"}
REPLICAS = 2
HELLO: Any = [{"role": "user", "content": "What is 2 plus 3?"}]
COUNT: Any = [{"role": "user", "content": "count"}]


def pid_of(replica: str) -> int:
    return int(replica.rsplit("-", 1)[1])


@dataclass(frozen=True)
class Cluster:
    url: str
    process: subprocess.Popen[str]
    root: Path
    lines: list[str]

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="key", timeout=120, **{"max_retries": 0, **options})

    def metrics(self, name: str) -> dict[str, float]:
        """A metric of each process."""
        text = httpx2.get(f"{self.url}/metrics", timeout=30).text
        found = re.findall(rf"^phi4mm:{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        return {re.findall(r'replica="(.*?)"', labels)[0]: float(value) for labels, value in found}

    def pids(self) -> set[int]:
        """Of the replicas."""
        return {pid_of(name) for name in self.metrics("num_requests_running")}

    def post(self, path: str, **body: str) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/{path}", json=body, headers=ADMIN, timeout=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("adapters")
    shutil.copytree(ROOT / "adapters" / "speech", root / "mine")
    command = [sys.executable, "-m", "phi4mm.serve", "--ray", "local", "--replicas", str(REPLICAS), "--threads", "1"]
    command += ["--port", "0", "--max-rows", "8", "--adapters-root", str(root), "--log-format", "json"]
    environment = {**os.environ, "PHI4MM_SERVE_API_KEYS": "key", "PHI4MM_SERVE_ADMIN_KEY": "admin"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stderr is not None
        lines: list[str] = []
        threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
        try:
            wait_until(lambda: process.poll() is not None or any('"serving"' in line for line in lines), 120)
            [url] = [json.loads(line)["url"] for line in lines if '"serving"' in line]
            yield Cluster(url, process, root, lines)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, "".join(lines[-20:])


def test_chat_stream_and_keys(cluster: Cluster, bundled: Phi4MM) -> None:
    expected = bundled.chat("What is 2 plus 3?").text
    client = cluster.client()
    reply = client.chat.completions.create(model="phi4mm", messages=HELLO)
    assert reply.choices[0].message.content == expected
    chunks = list(client.chat.completions.create(model="phi4mm", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert len(chunks) > 3
    assert [model.id for model in client.models.list()] == ["phi4mm", "vision", "speech"]
    for key, status in (("wrong", 401), ("key", 404)):
        answer = httpx2.get(f"{cluster.url}/v1/nothing", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        assert answer.headers["x-request-id"].startswith("req_")
    assert httpx2.get(f"{cluster.url}/ready").status_code == 200


def test_media(cluster: Cluster, bundled: Phi4MM) -> None:
    data = base64.b64encode((SAMPLES / "question.flac").read_bytes()).decode()
    content: Any = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    reply = cluster.client().chat.completions.create(model="phi4mm", messages=[{"role": "user", "content": content}])
    assert reply.choices[0].message.content == bundled.chat("", audios=[SAMPLES / "question.flac"]).text
    text = "x" * (9 << 20)  # a body of several parts
    answer = httpx2.post(
        f"{cluster.url}/v1/completions",
        json={"model": "phi4mm", "prompt": text},
        headers={"authorization": "Bearer key"},
        timeout=60,
    )
    assert answer.status_code == 400
    assert "max_text_bytes" in answer.text or "text" in answer.text


def test_transcriptions(cluster: Cluster, bundled: Phi4MM, tmp_path: Path) -> None:
    clip = SAMPLES / "eight_digits.flac"
    client = cluster.client()
    assert client.audio.transcriptions.create(model="phi4mm", file=clip).text == bundled.transcribe(clip).text
    expected = bundled.transcribe(clip).text
    events = list(client.audio.transcriptions.create(model="phi4mm", file=clip, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == expected
    long = np.tile(soundfile.read(clip, dtype="int16")[0], 60)  # over one part of a body
    wav = tmp_path / "long.wav"
    soundfile.write(wav, long, 16_000)
    assert wav.stat().st_size > PART_BYTES
    assert client.audio.transcriptions.create(model="phi4mm", file=wav).text == bundled.transcribe(wav).text


def test_realtime(cluster: Cluster, bundled: Phi4MM) -> None:
    samples, rate = soundfile.read(SAMPLES / "eight_digits.flac", dtype="int16")
    assert rate == 16_000
    audio = soxr.resample(samples, rate, 24_000).tobytes()
    with cluster.client().realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session={"type": "transcription", "audio": {"input": {"turn_detection": None}}})
        for at in range(0, len(audio), 4800):
            connection.input_audio_buffer.append(audio=base64.b64encode(audio[at : at + 4800]).decode())
        connection.input_audio_buffer.commit()
        while (event := connection.recv()).type != "conversation.item.input_audio_transcription.completed":
            assert event.type != "error", event
        assert event.transcript == bundled.transcribe(SAMPLES / "eight_digits.flac").text
        in_flight = cluster.metrics("http_requests_in_flight")
        [holder] = [name for name, count in in_flight.items() if count and name != "front"]
        os.kill(pid_of(holder), signal.SIGKILL)
        event = connection.recv()
        assert event.type == "error"
        assert event.error.code == "replica_lost"
        with pytest.raises(ConnectionClosed):
            connection.recv()
    wait_until(lambda: len(cluster.pids()) == REPLICAS, 60)


def test_both_replicas_are_used_and_have_the_same_adapters(cluster: Cluster) -> None:
    assert len(cluster.pids()) == REPLICAS
    assert cluster.post("load_lora_adapter", lora_name="mine", lora_path="mine").status_code == 200
    client = cluster.client()

    def route(_: int) -> Any:
        reply = client.chat.completions.create(model="mine", messages=HELLO)
        assert reply.model_extra is not None
        return reply.model_extra["route"]["adapters"]

    before = cluster.metrics("adapter_requests_total")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(route, range(24))) == [["mine"]] * 24
    text = httpx2.get(f"{cluster.url}/metrics", timeout=30).text
    used = re.findall(r'adapter_requests_total{adapter="mine",replica="(.*?)"}', text)
    assert len(used) == REPLICAS, (before, text)

    assert cluster.post("unload_lora_adapter", lora_name="mine").status_code == 200
    for _ in range(8):
        assert "mine" not in [model.id for model in client.models.list()]


def test_a_client_that_goes_away_frees_its_row(cluster: Cluster, endless: dict[str, Any]) -> None:
    stream = cluster.client().chat.completions.create(
        model="phi4mm", messages=COUNT, stream=True, max_tokens=endless["max_tokens"], logit_bias=endless["logit_bias"]
    )
    next(iter(stream))
    assert sum(cluster.metrics("num_requests_running").values()) == 1
    stream.close()
    wait_until(lambda: sum(cluster.metrics("num_requests_running").values()) == 0, 20)


def test_a_replica_is_killed_under_load(cluster: Cluster, bundled: Phi4MM, endless: dict[str, Any]) -> None:
    client = cluster.client()
    bias = endless["logit_bias"]
    options: Any = {"model": "phi4mm", "messages": HELLO, "logit_bias": bias, "max_tokens": 400}
    expected = client.chat.completions.create(**options).choices[0].message.content

    def whole(_: int) -> str | None:
        return client.chat.completions.create(**options).choices[0].message.content

    def streamed(_: int) -> tuple[str, str | None]:
        text = ""
        try:
            for chunk in client.chat.completions.create(**options, stream=True):
                text += chunk.choices[0].delta.content or ""
        except APIError as error:
            return text, error.code
        return text, None

    pids = cluster.pids()
    assert len(pids) == REPLICAS
    with ThreadPoolExecutor(16) as threads:
        wholes = [threads.submit(whole, index) for index in range(8)]
        streams = [threads.submit(streamed, index) for index in range(8)]
        time.sleep(1.0)
        os.kill(min(pids), signal.SIGKILL)
        assert [future.result() for future in wholes] == [expected] * 8
        ends = [future.result() for future in streams]
    assert {code for _, code in ends} <= {None, "replica_lost"}
    assert any(code for _, code in ends)
    for text, code in ends:
        assert text == expected if code is None else str(expected).startswith(text)
    assert sum(cluster.metrics("replicas_lost_total").values()) >= 1
    wait_until(lambda: len(cluster.pids()) == REPLICAS, 60)  # another one has taken its place
    assert whole(0) == expected


def test_the_manifest_of_the_docs_is_an_application() -> None:
    text = (ROOT / "docs" / "serve-cluster.md").read_text(encoding="utf-8")
    [manifest] = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    config = ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_load(manifest)["spec"]["serveConfigV2"]))
    [app] = config.applications
    module, _, name = app.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    assert isinstance(build(app.args), Application)
    with pytest.raises(Phi4MMError, match="'modle' is no option"):
        build({"modle": "x"})
    known = f"{make_parser().format_help()} --generate --head --address --foreground --no-cache-dir --from-literal"
    assert [one for one in re.findall(r"--[a-z][a-z-]+", text) if one not in known] == []

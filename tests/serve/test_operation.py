"""Load, ends, keys, logs and metrics."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from phi4mm import __version__
from phi4mm.api import Phi4MM
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ModelOptions, Security, ServeOptions
from tests.serve.conftest import Running, running, wait_until

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 plus 3?"}]
NUM_UNDER_LOAD = 32  # requests, more than four times as many as are decoded together
ROOT = Path(__file__).parent.parent.parent


def test_a_full_queue_says_when_to_come_again(bundled: Phi4MM, endless: dict[str, Any]) -> None:
    options = ServeOptions(model=ModelOptions(max_rows=1), limits=Limits(max_queue=1))
    with running(bundled, options) as server:
        client = server.client()
        streams = [
            client.chat.completions.create(model="phi4mm", messages=QUESTION, stream=True, **endless) for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="phi4mm", messages=QUESTION)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "rows"
        with pytest.raises(openai.APIStatusError) as too_large:
            client.chat.completions.create(model="phi4mm", messages=QUESTION, n=3)
        assert too_large.value.status_code == 413
        for stream in streams:
            stream.close()
        wait_until(lambda: server.service.admission.num_requests == 0)
        assert client.chat.completions.create(model="phi4mm", messages=QUESTION).choices
        assert 'phi4mm:admission_rejections_total{reason="rows"} 1.0' in httpx2.get(f"{server.url}/metrics").text


def test_a_draining_server_takes_nothing_more(bundled: Phi4MM) -> None:
    with running(bundled) as server:
        assert httpx2.get(f"{server.url}/ready").status_code == 200
        server.service.admission.draining = True
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().chat.completions.create(model="phi4mm", messages=QUESTION)
        assert caught.value.status_code == 503
        assert "retry-after" in caught.value.response.headers
        assert httpx2.get(f"{server.url}/ready").status_code == 503
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_keys(bundled: Phi4MM) -> None:
    options = ServeOptions(security=Security(api_keys=("one", "two"), admin_key="admin"))
    with running(bundled, options) as server:
        assert server.client("two").models.list().data
        for key in ("three", "admin", "on", "öne"):
            answer = httpx2.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}".encode()})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/ready", "/version", "/metrics"):
            assert httpx2.get(server.url + path).status_code == 200
        for path in ("/tokenize", "/v1/load_lora_adapter"):
            assert httpx2.post(server.url + path, json={}).status_code == 401
        bearer = {"authorization": "Bearer one"}
        assert httpx2.post(f"{server.url}/v1/load_lora_adapter", json={}, headers=bearer).status_code == 401


def test_origins(bundled: Phi4MM) -> None:
    options = ServeOptions(security=Security(cors_origins=("https://page.example",)))
    with running(bundled, options) as server:
        for origin, status in (
            ("https://page.example", 200),
            (server.url, 200),
            ("https://other.example", 403),
            ("null", 403),
        ):
            answer = httpx2.get(f"{server.url}/v1/models", headers={"origin": origin})
            assert answer.status_code == status
        allowed = httpx2.get(f"{server.url}/v1/models", headers={"origin": "https://page.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"


def test_request_ids_and_logs_without_contents(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "phi4mm.serve")
    secret, ids = "a very private question", set()
    for given, expected in (("mine-1", r"mine-1"), ("a\tb" * 100, r"req_[0-9a-f]{24}")):
        answer = httpx2.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": secret}]},
            headers={"x-request-id": given},
        )
        assert re.fullmatch(expected, answer.headers["x-request-id"])
        ids.add(answer.headers["x-request-id"])

    def logged() -> list[dict[str, Any]]:
        """What was logged of these requests; others of tests before may still end."""
        mine = [record for record in caplog.records if getattr(record, "request_id", None) in ids]
        return [record.__dict__["values"] for record in mine]

    wait_until(lambda: len(logged()) == 4)
    values = logged()
    ended = {"method": "POST", "path": "/v1/chat/completions", "status": 200}.items()
    assert len([one for one in values if ended <= one.items()]) == 2
    assert len([one for one in values if one.get("prompt_tokens", 0) > 0]) == 2
    text = answer.json()["choices"][0]["message"]["content"]
    shown = json.dumps([str(one) for one in values] + [one.getMessage() for one in caplog.records])
    assert secret not in shown
    assert text not in shown


def test_metrics_and_version(server: Running) -> None:
    server.client().chat.completions.create(model="speech", messages=QUESTION)
    wait_until(lambda: server.service.model.stats().running == 0)
    answer = httpx2.get(f"{server.url}/metrics")
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(found["phi4mm:generation_tokens_total"]) > 0
    assert float(found['phi4mm:adapter_requests_total{adapter="speech"}']) > 0
    assert float(found["phi4mm:num_requests_running"]) == 0
    assert float(found["phi4mm:num_requests_waiting"]) == 0
    assert 0 <= float(found["phi4mm:kv_cache_usage_perc"]) <= 1
    assert float(found["phi4mm:time_to_first_token_seconds_count"]) > 0
    rows = float(found["phi4mm:request_decode_time_seconds_count"])
    assert rows > 0
    for name in ("queue", "prefill"):
        assert float(found[f"phi4mm:request_{name}_time_seconds_count"]) == rows
    gaps = float(found["phi4mm:inter_token_latency_seconds_count"])
    assert 0 < gaps < float(found["phi4mm:generation_tokens_total"])
    whole = float(found["phi4mm:request_decode_time_seconds_sum"])
    assert float(found["phi4mm:inter_token_latency_seconds_sum"]) == pytest.approx(whole)
    [info] = [name for name in found if name.startswith("phi4mm:lora_requests_info")]
    assert 'max_lora="2"' in info
    assert httpx2.get(f"{server.url}/version").json()["version"] == __version__


def test_metrics_under_another_prefix(bundled: Phi4MM) -> None:
    with running(bundled, ServeOptions(metrics_prefix="vllm")) as server:
        text = httpx2.get(f"{server.url}/metrics").text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert "vllm:num_requests_running" in names
    assert not [name for name in names if not name.startswith("vllm:")]


def test_a_prompt_that_is_too_long(bundled: Phi4MM) -> None:
    with running(bundled, ServeOptions(limits=Limits(max_prompt_tokens=50))) as server:
        client = server.client()
        assert client.chat.completions.create(model="phi4mm", messages=QUESTION).choices
        long: list[Any] = [{"role": "user", "content": "one two three " * 50}]
        with pytest.raises(openai.BadRequestError, match="takes at most 50") as caught:
            client.chat.completions.create(model="phi4mm", messages=long)
        assert caught.value.code == "context_length_exceeded"
    with running(bundled) as server, pytest.raises(openai.BadRequestError, match="takes at most 32768"):
        server.client().completions.create(model="phi4mm", prompt=[100] * 40_000)


def test_tokenize(server: Running, bundled: Phi4MM) -> None:
    def tokens(**body: Any) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.post(f"{server.url}/tokenize", json=body).json()
        return found

    text = tokens(prompt="two plus <|end|>", return_token_strs=True)
    assert text["tokens"] == bundled.processor.tokenizer.encode("two plus <|end|>")
    assert "".join(text["token_strs"]) == "two plus <|end|>"
    chat = tokens(messages=QUESTION)
    assert chat["count"] == len(chat["tokens"]) == bundled.chat("What is 2 plus 3?").usage.prompt_tokens


def test_completions(server: Running) -> None:
    client = server.client()
    reply = client.completions.create(model="phi4mm", prompt=["one two", "three"], max_tokens=4, logprobs=2, n=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.tokens is not None
    assert len(reply.choices[0].logprobs.tokens) == 4
    ids = server.service.model.processor.tokenizer.encode("one two")
    by_ids = client.completions.create(model="phi4mm", prompt=ids, max_tokens=4)
    assert by_ids.choices[0].text == reply.choices[0].text
    stream = client.completions.create(model="phi4mm", prompt="one two", max_tokens=4, stream=True, echo=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == f"one two{by_ids.choices[0].text}"
    for prompt in ([], "", [[]], [1, "a"], [10**9], [-1]):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="phi4mm", prompt=prompt)  # type: ignore[arg-type]


def test_comments_in_a_stream_while_nothing_comes(bundled: Phi4MM, endless: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "one two three " * 2000}], "stream": True, **endless}
    with running(bundled, ServeOptions(ping_seconds=0.02)) as server:
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            assert any(line.startswith(": ping") for line in lines)
        wait_until(lambda: bundled.stats().running == 0)


def test_a_slow_body_is_given_up(bundled: Phi4MM) -> None:
    with running(bundled, ServeOptions(limits=Limits(body_seconds=0.2))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                'Content-Length: 100\r\n\r\n{"mess'.encode()
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        wait_until(lambda: server.service.admission.num_requests == 0)


def test_what_does_not_end_in_time_is_told_so(endless: dict[str, Any]) -> None:
    with Phi4MM.from_pretrained() as model, running(model, ServeOptions(drain_seconds=0.3)) as server:
        stream = server.client().chat.completions.create(model="phi4mm", messages=QUESTION, stream=True, **endless)
        next(iter(stream))
        server.stop(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        wait_until(lambda: server.service.admission.num_requests == 0)
        wait_until(lambda: not server.alive)


def test_https(bundled: Phi4MM, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 {names} -keyout {key} -out {certificate}"
    made = subprocess.run(command.split(), capture_output=True)
    assert made.returncode == 0, made.stderr
    with running(bundled, ServeOptions(tls_certificate=certificate, tls_key=key)) as server:
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx2.get(server.url.replace("http:", "https:") + "/health", verify=trusted).status_code == 200


@pytest.mark.slow
def test_sigterm_loses_no_request_that_was_let_in(tmp_path: Path) -> None:
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", "phi4mm.serve", "--port", "0", "--log-format", "json", "--threads", "1"]
    process = subprocess.Popen(command, stderr=log, cwd=ROOT, env={**os.environ, "PHI4MM_SERVE_MAX_ROWS": "4"})
    try:
        url = ""

        def serving() -> bool:
            nonlocal url
            log.seek(0)
            events = [json.loads(line) for line in log.read().splitlines() if line.startswith("{")]
            url = next((one["url"] for one in events if one["event"] == "serving"), "")
            assert process.poll() is None, events
            return bool(url)

        wait_until(serving, 120)
        wait_until(lambda: _ready(url), 20)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        begun = threading.Barrier(NUM_UNDER_LOAD + 1)

        def ask(stream: bool) -> str:
            begun.wait()
            words: Any = [{"role": "user", "content": "What is 2 plus 3?"}]
            if not stream:
                return client.chat.completions.create(model="phi4mm", messages=words).choices[0].finish_reason
            chunks = client.chat.completions.create(model="phi4mm", messages=words, stream=True)
            return [chunk.choices[0].finish_reason for chunk in chunks][-1] or ""

        with ThreadPoolExecutor(NUM_UNDER_LOAD) as pool:
            answers = [pool.submit(ask, bool(number % 2)) for number in range(NUM_UNDER_LOAD)]
            begun.wait()
            wait_until(lambda: b"num_requests_running 0.0" not in httpx2.get(f"{url}/metrics").content, 20)
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            ends = [_end(answer) for answer in answers]
        assert process.wait(30) == 0
        assert "stop" in ends
        assert set(ends) <= {"stop", "refused"}
    finally:
        process.kill()
        process.wait()
        log.close()


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready").status_code == 200
    except httpx2.TransportError:
        return False


def _end(answer: Any) -> str:
    """How a request ended: refused ones were not let in."""
    try:
        found: str = answer.result(60)
    except openai.InternalServerError as error:
        return "refused" if error.status_code == 503 else str(error)
    return found

"""The front and its relay without Ray: replicas that die when they are told to."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from phi4mm.api import Phi4MM
from phi4mm.errors import AdapterError, Phi4MMError
from phi4mm.serve.cluster import relay
from phi4mm.serve.cluster.adapters import SharedAdapters
from phi4mm.serve.cluster.front import Front, make_front, merged
from phi4mm.serve.cluster.relay import Forwarded, ReplicaLost
from phi4mm.serve.cluster.replica import run
from phi4mm.serve.options import ClusterOptions, Security, ServeOptions
from phi4mm.serve.parser import parse

ROOT = Path(__file__).parent.parent.parent
HOST = {"host": "localhost"}


async def echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body()), "id": request.headers["x-request-id"]})


async def stream(request: Request) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            yield f"data: {number}\n\n".encode()
            await asyncio.sleep(0)

    return StreamingResponse(events(), media_type="text/event-stream")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    while (text := await socket.receive_text()) != "end":
        await socket.send_text(text.upper())
    await socket.close()


APP = Starlette(
    routes=[Route("/v1/echo", echo, methods=["POST"]), Route("/v1/stream", stream), WebSocketRoute("/v1/talk", talk)]
)


class FakeChannel:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self.put, self.get = self._queue.put, self._queue.get

    async def close(self) -> None:
        await self.put({"type": "websocket.disconnect", "code": 1006})


class FakeReplicas:
    """Runs ``APP``; each number is of one call: after so many messages the replica dies."""

    def __init__(self, *dies_after: int) -> None:
        self.dies_after = list(dies_after)
        self.num_calls = 0

    async def keep(self, part: bytes) -> Any:
        async def again() -> bytes:
            return part

        return _Kept(again)

    def open_channel(self) -> FakeChannel:
        return FakeChannel()

    async def answer(self, request: Forwarded) -> AsyncGenerator[list[Message], None]:
        self.num_calls += 1
        left = self.dies_after.pop(0) if self.dies_after else 1_000
        async for batch in run(APP, request):
            for message in batch:
                if left == 0:
                    raise ReplicaLost("it was killed")
                left -= 1
                yield [message]

    async def count(self) -> int:
        return 2

    async def metrics(self) -> dict[str, bytes]:
        return {"one": b"", "two": b""}

    def abandon(self) -> None:
        pass


class _Kept:
    def __init__(self, again: Callable[[], Any]) -> None:
        self._again = again

    def __await__(self) -> Any:
        return self._again().__await__()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_PAUSE", 0)
    monkeypatch.setattr(relay, "PART_BYTES", 1000)


def front(replicas: FakeReplicas, **options: Any) -> TestClient:
    return TestClient(make_front(Front(ServeOptions(**options), replicas)), headers=HOST)


@pytest.mark.parametrize("dies_after", [(), (0,), (1,), (0, 1)])
def test_an_answer_that_had_not_begun_comes_from_another_replica(dies_after: tuple[int, ...]) -> None:
    replicas = FakeReplicas(*dies_after)
    answer = front(replicas).post("/v1/echo", content=b"x" * 2500, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    assert answer.json() == {"bytes": 2500, "id": "mine"}
    assert answer.headers["x-request-id"] == "mine"
    assert replicas.num_calls == len(dies_after) + 1


def test_a_request_that_kills_its_replicas_ends() -> None:
    replicas = FakeReplicas(0, 0, 0, 0)
    answer = front(replicas).post("/v1/echo", content=b"")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "replica_lost"
    assert replicas.num_calls == relay.ATTEMPTS


@pytest.mark.parametrize(("dies_after", "events", "calls"), [(0, 3, 2), (1, 3, 2), (2, 1, 1), (4, 3, 1)])
def test_a_stream_that_had_begun_ends_with_an_error(dies_after: int, events: int, calls: int) -> None:
    replicas = FakeReplicas(dies_after)
    text = front(replicas).get("/v1/stream").text
    assert [f"data: {number}" for number in range(events)] == text.split("\n\n")[:events]
    assert replicas.num_calls == calls
    assert ("replica_lost" in text) == (calls == 1)


def test_websocket() -> None:
    with front(FakeReplicas(0)).websocket_connect("/v1/talk") as socket:
        for word in ("one", "two"):
            socket.send_text(word)
            assert socket.receive_text() == word.upper()
        socket.send_text("end")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1000
    with front(FakeReplicas(2)).websocket_connect("/v1/talk") as socket:
        socket.send_text("one")
        assert socket.receive_text() == "ONE"
        socket.send_text("two")
        assert socket.receive_json()["error"]["code"] == "replica_lost"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1012


def test_keys_and_drain_are_the_fronts() -> None:
    replicas = FakeReplicas()
    client = front(replicas, security=Security(api_keys=("key",)))
    assert client.post("/v1/echo").status_code == 401
    assert client.get("/ready").status_code == 200
    client.app.state.service.admission.draining = True  # type: ignore[attr-defined]
    assert client.get("/ready").status_code == 503
    answer = client.post("/v1/echo", headers={"authorization": "Bearer key"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert replicas.num_calls == 0


def test_metrics_of_all_processes_are_told_apart() -> None:
    text = b'# TYPE phi4mm:a counter\nphi4mm:a_total{b="c"} %d.0\n'
    found = merged({"one": text % 1, "two": text % 2}).decode()
    assert 'phi4mm:a_total{b="c",replica="one"} 1.0' in found
    assert 'phi4mm:a_total{b="c",replica="two"} 2.0' in found
    assert found.count("# TYPE phi4mm:a_total counter") == 1


@pytest.fixture
def models() -> Iterator[tuple[Phi4MM, Phi4MM]]:
    with Phi4MM.from_pretrained() as one, Phi4MM.from_pretrained() as two:
        yield one, two


def test_adapters_follow_those_of_another_replica(models: tuple[Phi4MM, Phi4MM], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "adapters" / "speech", tmp_path / "mine")
    state = tmp_path / "list.json"
    one, two = (SharedAdapters(model.adapters, state, tmp_path) for model in models)
    assert one.follow() == two.follow() == []
    assert not two.changed()
    one.load("mine", "mine")
    assert two.changed()
    assert not one.changed()
    assert two.follow() == []
    assert two.names == ("vision", "speech", "mine")
    with pytest.raises(AdapterError):
        two.load("mine", "mine")
    assert not two.changed()

    first = models[1].model.adapters["mine"]
    one.unload("mine")
    one.load("mine", "mine")  # perhaps with other weights
    assert two.follow() == []
    assert models[1].model.adapters["mine"] is not first
    two.unload("mine")
    one.follow()
    assert one.names == ("vision", "speech")

    one.load("mine", "mine")
    shutil.rmtree(tmp_path / "mine")
    [problem] = two.follow()
    assert "mine" in problem
    assert not two.changed()


def test_options() -> None:
    assert parse([], {}).cluster is None
    found = parse(["--ray", "local", "--replicas", "2", "--max-replicas", "4"], {"PHI4MM_SERVE_REPLICA_GPUS": "0.5"})
    assert found.cluster == ClusterOptions("local", 2, 4, 0.5)
    for arguments, words in (
        (["--replicas", "2"], "without --ray"),
        (["--ray", "auto", "--replicas", "0"], "--replicas is 0; expected 1 or more"),
        (["--ray", "auto", "--replicas", "3", "--max-replicas", "2"], "--max-replicas is 2; expected 3 or more"),
    ):
        with pytest.raises(Phi4MMError, match=words):
            parse(arguments, {})

"""A real server in a thread, and OpenAI's client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from phi4mm.api import Phi4MM
from phi4mm.serve.app import make_app
from phi4mm.serve.fetch import Fetcher
from phi4mm.serve.lifecycle import Server, bind
from phi4mm.serve.options import ServeOptions
from phi4mm.serve.service import Service

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"


@dataclass(frozen=True)
class Running:
    """A server that runs: its address, what is behind it, and how a signal ends it."""

    url: str
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def stop(self, number: int) -> None:
        self.server.handle_exit(number, None)

    def client(self, key: str = "none", **options: object) -> OpenAI:
        """OpenAI's client, which does not try again by itself."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def running(model: Phi4MM, options: ServeOptions | None = None, *, fetcher: Fetcher | None = None) -> Iterator[Running]:
    """A server over a model, in a thread, on a port that is free."""
    options = options or ServeOptions()
    service = Service(model, options, fetcher=fetcher)
    server = Server(make_app(service), options)
    with bind("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", service, server, thread)
        finally:
            server.should_exit = True
            thread.join(20)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def server(bundled: Phi4MM) -> Iterator[Running]:
    """The bundled checkpoint, served with the default options."""
    with running(bundled) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def endless(bundled: Phi4MM) -> dict[str, object]:
    """Fields of a request that goes on until it is ended."""
    stops = bundled.model.config.decoder.stop_token_ids
    return {"max_tokens": 100_000, "logit_bias": {str(token_id): -100 for token_id in stops}}

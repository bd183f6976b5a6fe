"""Servers and clients of the benchmark, each a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4mm.errors import Phi4MMError

_START_SECONDS = 300.0
_NAP = 0.1


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def peak_bytes(self) -> int:
        """The most memory that it had."""
        return self._status("VmHWM")

    @property
    def resident_bytes(self) -> int:
        """The memory that it has now."""
        return self._status("VmRSS")

    @property
    def cpu_seconds(self) -> float:
        """That all its threads took until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise Phi4MMError("this system does not report how much memory a process had")


@contextmanager
def serving(command: Sequence[str], ready: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """A server, until the context is left.

    Args:
        command: with ``{port}`` where the port stands.
        ready: a path that answers 200 once it takes requests.

    Raises:
        Phi4MMError: it did not start; the end of what it wrote is in the message.
    """
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            end = time.monotonic() + _START_SECONDS
            while not _answers(port, ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise Phi4MMError(f"the server did not start: {log.read()[-800:].decode(errors='replace')}")
                time.sleep(_NAP)
            yield Served(port, process)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


class Clients:
    """The clients' process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "phi4mm.bench.server_client"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, port: int, requests: Sequence[dict[str, Any]], together: int) -> dict[str, Any]:
        """What requests come to of which so many run at a time: see ``server_client``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"host": "127.0.0.1", "port": port, "together": together, "requests": list(requests)}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Phi4MMError("the clients' process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

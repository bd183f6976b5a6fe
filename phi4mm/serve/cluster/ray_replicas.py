"""The way from a front to its replicas: a handle of Ray Serve's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.types import Message

from phi4mm.serve.cluster.relay import Forwarded, ReplicaLost
from phi4mm.serve.errors import ApiError

_WAITING = 64  # messages of a websocket on their way to a replica
_WEBSOCKETS = 10_000
_METRICS_SECONDS = 5.0


class RayReplicas:
    """Replicas behind a handle.

    Args:
        handle: of the deployment of ``Replica``.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._running: set[Any] = set()
        self._mailbox: Any = None

    async def keep(self, part: bytes) -> Any:
        """In Ray's object store, which spills to disk; it is freed with the reference."""
        return await asyncio.to_thread(ray.put, part)

    def open_channel(self) -> MailboxChannel:
        """A channel by an actor in which messages wait: a call of a replica takes no more input once it has begun."""
        if self._mailbox is None:
            self._mailbox = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=_WEBSOCKETS).remote()
        return MailboxChannel(self._mailbox, secrets.token_hex(8))

    async def answer(self, request: Forwarded) -> AsyncGenerator[list[Message], None]:
        """See ``relay.Replicas``."""
        response = cast(DeploymentResponseGenerator[Any], self._streaming.answer.remote(request))
        self._running.add(response)
        ended = False
        try:
            async for batch in response:
                yield batch
            ended = True
        except BackPressureError as error:
            raise ApiError(
                429, "the server is busy; try again later", code="rows", headers={"Retry-After": "1"}
            ) from error
        except DeploymentUnavailableError as error:
            raise ApiError(503, "no replica could be started; see the log of Ray Serve", code="no_replica") from error
        except ReplicaUnavailableError as error:
            raise ReplicaLost(str(error)) from error
        except (RayTaskError, TaskCancelledError):
            raise
        except RayError as error:
            raise ReplicaLost(type(error).__name__) from error
        finally:
            self._running.discard(response)
            if not ended:
                response.cancel()

    async def count(self) -> int:
        """How many replicas run, by Ray Serve's controller: a replica that is busy need not answer for it."""
        found = (await asyncio.to_thread(serve.status)).applications.get(self._handle.app_name)
        deployment = found and found.deployments.get(self._handle.deployment_name)
        states = deployment.replica_states if deployment else {}
        return sum(count for state, count in states.items() if state == "RUNNING")

    async def metrics(self) -> dict[str, bytes]:
        """The metrics of each replica that answers in time, by its name."""
        try:
            async with asyncio.timeout(_METRICS_SECONDS):
                found = await self._handle.broadcast("metrics").results_async(return_exceptions=True)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return {}
        return dict(one for one in found if isinstance(one, tuple))

    def abandon(self) -> None:
        """End what still runs."""
        for response in list(self._running):
            response.cancel()


@dataclass(frozen=True)
class MailboxChannel:
    """One websocket's messages, by the actor in which they wait."""

    mailbox: Any
    name: str

    async def put(self, message: Message) -> None:
        await self._call("put", message)

    async def get(self) -> Message:
        message: Message = await self._call("get")
        return message

    async def close(self) -> None:
        await self._call("close")

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self.mailbox, method).remote(self.name, *arguments)
        except RayError as error:
            raise ReplicaLost(type(error).__name__) from error


class Mailbox:
    """An actor in which the messages of all websockets of a front wait for their replicas."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Queue[Message]] = {}

    async def put(self, name: str, message: Message) -> None:
        await self._queue(name).put(message)

    async def get(self, name: str) -> Message:
        return await self._queue(name).get()

    async def close(self, name: str) -> None:
        """The replica, if it still waits, sees that the client has gone."""
        queue = self._waiting.pop(name, None)
        if queue is not None and not queue.full():
            queue.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def _queue(self, name: str) -> asyncio.Queue[Message]:
        return self._waiting.setdefault(name, asyncio.Queue(_WAITING))

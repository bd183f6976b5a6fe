"""Which requests are let in: as many as there is room for, the others are told when to come again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from phi4mm.serve.errors import ApiError
from phi4mm.serve.limits import Limits
from phi4mm.serve.metrics import Metrics

_LONGEST_WAIT = 60  # seconds that a client is told to wait: more than 120 and OpenAI's does not come again
_SMOOTHING = 0.2


class Ticket:
    """What one request takes of the room for all."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.arrived = time.monotonic()
        self.rows = 0
        self.prompt_tokens = 0
        self.media_seconds = 0.0
        self.nbytes = 0

    def take(self, *, rows: int = 0, prompt_tokens: int = 0, media_seconds: float = 0.0, nbytes: int = 0) -> None:
        """Take more.

        Raises:
            ApiError: there is no room for it (429), now (503, while the server drains), or ever (413).
        """
        self._admission.check(rows, prompt_tokens, media_seconds, nbytes)
        self._add(rows, prompt_tokens, media_seconds, nbytes)

    def try_take(self, *, rows: int = 0, media_seconds: float = 0.0, nbytes: int = 0) -> bool:
        """Take more if there is room for it, which is returned: for parts of a request that can wait."""
        if self._admission.lacks(rows, 0, media_seconds, nbytes) is not None:
            return False
        self._add(rows, 0, media_seconds, nbytes)
        return True

    def give(self, *, rows: int = 0, media_seconds: float = 0.0, nbytes: int = 0) -> None:
        """Give back of what was taken, before the request ends."""
        self._add(-rows, 0, -media_seconds, -nbytes)

    def _add(self, rows: int, prompt_tokens: int, media_seconds: float, nbytes: int) -> None:
        self.rows += rows
        self.prompt_tokens += prompt_tokens
        self.media_seconds += media_seconds
        self.nbytes += nbytes


class Admission:
    """The room for requests: rows, prompt tokens, seconds of media and bytes. Used in the event loop alone.

    Args:
        limits: how much there is.
        max_rows: that are decoded together.
        metrics: where refusals are counted.

    Attributes:
        draining: nothing more is let in.
    """

    def __init__(self, limits: Limits, max_rows: int, metrics: Metrics) -> None:
        self._tickets: set[Ticket] = set()
        self._metrics = metrics
        self._mean_seconds = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._num_live = 0
        self._max_live = limits.max_live_sessions
        self.draining = False
        self._room: dict[str, tuple[float, Callable[[Ticket], float]]] = {
            "rows": (max_rows + limits.max_queue, lambda ticket: ticket.rows),
            "prompt_tokens": (limits.max_total_prompt_tokens, lambda ticket: ticket.prompt_tokens),
            "media_seconds": (limits.max_media_seconds, lambda ticket: ticket.media_seconds),
            "memory": (limits.max_memory_bytes, lambda ticket: ticket.nbytes),
        }

    @property
    def num_requests(self) -> int:
        """Requests that were let in and have not ended."""
        return len(self._tickets)

    @contextmanager
    def enter(self, rows: int = 0) -> Iterator[Ticket]:
        """Let a request in until the context is left.

        Raises:
            ApiError: 429 where there is no room, 503 while the server drains.
        """
        self._refuse_if_draining()
        ticket = Ticket(self)
        ticket.take(rows=rows)
        self._tickets.add(ticket)
        self._idle.clear()
        try:
            yield ticket
        finally:
            self._tickets.discard(ticket)
            spent = time.monotonic() - ticket.arrived
            self._mean_seconds += _SMOOTHING * (spent - self._mean_seconds)
            if not self._tickets:
                self._idle.set()

    @contextmanager
    def enter_live(self) -> Iterator[None]:
        """Let a live connection in until the context is left; it takes other room only while it transcribes.

        Raises:
            ApiError: 429 where there are too many, 503 while the server drains.
        """
        self._refuse_if_draining()
        if self._num_live >= self._max_live:
            raise self._refused("live_sessions", 429, "the server has too many live connections; try again later")
        self._num_live += 1
        try:
            yield
        finally:
            self._num_live -= 1

    def check(self, rows: int, prompt_tokens: int, media_seconds: float, nbytes: int) -> None:
        """Refuse so much more where there is no room for it."""
        reason = self.lacks(rows, prompt_tokens, media_seconds, nbytes)
        if reason is None:
            return
        more = {"rows": rows, "prompt_tokens": prompt_tokens, "media_seconds": media_seconds, "memory": nbytes}[reason]
        room, _ = self._room[reason]
        if more > room:
            raise ApiError(413, f"the request needs {more:g} {reason}; this server has room for {room:g}")
        raise self._refused(reason, 429, f"the server is busy ({reason}); try again later")

    def lacks(self, rows: int, prompt_tokens: int, media_seconds: float, nbytes: int) -> str | None:
        """What there is no room for, if so much more were taken."""
        more = {"rows": rows, "prompt_tokens": prompt_tokens, "media_seconds": media_seconds, "memory": nbytes}
        for reason, (room, of) in self._room.items():
            if more[reason] and sum(map(of, self._tickets)) + more[reason] > room:
                return reason
        return None

    async def idle(self) -> None:
        """Wait until no request is left."""
        await self._idle.wait()

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise self._refused("draining", 503, "the server is shutting down; try another or again later")

    def _refused(self, reason: str, status: int, message: str) -> ApiError:
        self._metrics.admission_rejections.labels(reason).inc()
        wait = max(1, min(_LONGEST_WAIT, round(self._mean_seconds)))
        return ApiError(status, message, code=reason, headers={"Retry-After": str(wait)})

"""One request through the engine: read in a thread, let in, run, measured, and ended with its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from phi4mm.engine.handle import Handle
from phi4mm.inputs.processor import Row
from phi4mm.serve.admission import Ticket
from phi4mm.serve.logs import log
from phi4mm.serve.service import Service
from phi4mm.types import Reply, Request


@dataclass(frozen=True)
class Prepared:
    """A request that is read: its prompt, and how many seconds of audio and how many images it carries."""

    request: Request
    row: Row
    audio_seconds: float = 0.0
    num_images: int = 0


@dataclass
class Generation:
    """A request that runs.

    Attributes:
        prepared: what was read.
        handles: of its replies.
    """

    service: Service
    ticket: Ticket
    prepared: Prepared
    handles: tuple[Handle, ...]
    _first_text: float | None = field(default=None, init=False)
    _counted: bool = field(default=False, init=False)

    @property
    def row(self) -> Row:
        """Its prompt."""
        return self.prepared.row

    async def pieces(self, index: int = 0) -> AsyncIterator[str]:
        """The text of one of the replies as it comes."""
        async for piece in self.handles[index]:
            self._seen()
            yield piece

    async def begun(self, seconds: float) -> None:
        """Wait until the answer begins, but not for long: then what is wrong can still be the response's status.

        Raises:
            Phi4MMError: it cannot be answered.
        """
        try:
            async with asyncio.timeout(seconds):
                async for _ in self.handles[0]:
                    self._seen()
                    break
        except TimeoutError:
            return

    async def replies(self) -> list[Reply]:
        """All replies, once they are there."""
        async for _ in self.handles[0]:  # the first piece is timed
            self._seen()
            break
        replies = [replace(await handle, alternatives=()) for handle in self.handles]
        self.finished(replies)
        return replies

    def finished(self, replies: list[Reply]) -> None:
        """Count what was done."""
        metrics, now = self.service.metrics, time.monotonic()
        new_tokens = sum(reply.usage.new_tokens for reply in replies)
        metrics.prompt_tokens.inc(len(self.row.token_ids))
        metrics.generation_tokens.inc(new_tokens)
        metrics.prefix_cache_hits.inc(replies[0].usage.cached_tokens)
        metrics.adapter_requests.labels("+".join(self.row.route.adapters) or "none").inc()
        metrics.images.inc(self.prepared.num_images)
        metrics.audio_seconds.inc(self.prepared.audio_seconds)
        spent = now - self.ticket.arrived
        metrics.e2e_request_latency_seconds.observe(spent)
        if self.prepared.audio_seconds:
            metrics.real_time_factor.observe(spent / self.prepared.audio_seconds)
        for reply in replies:
            metrics.request_success.labels(reply.finish_reason).inc()
        for handle in self.handles:
            metrics.observe_row(handle.times)
        self._counted = True
        log(
            "answered",
            adapters="+".join(self.row.route.adapters) or None,
            prompt_tokens=len(self.row.token_ids),
            new_tokens=new_tokens,
            cached_tokens=replies[0].usage.cached_tokens,
            audio_seconds=round(self.prepared.audio_seconds, 2) or None,
            images=self.prepared.num_images or None,
            finish_reasons=",".join(reply.finish_reason for reply in replies),
        )

    def end(self) -> None:
        """End the rows that still run."""
        for handle in self.handles:
            handle.cancel()
        if not self._counted:
            self.service.metrics.request_success.labels("cancelled").inc(len(self.handles))

    def _seen(self) -> None:
        if self._first_text is None:
            self._first_text = time.monotonic()
            self.service.metrics.time_to_first_token_seconds.observe(self._first_text - self.ticket.arrived)


async def start(service: Service, ticket: Ticket, read: Callable[[], Prepared]) -> Generation:
    """Read a request in a thread and hand it to the engine. End it with ``ended``.

    Args:
        ticket: with the rows that the request takes.
        read: makes the request and its row.

    Raises:
        ApiError: there is no room for it, or its prompt is too long.
        Phi4MMError: it is bad.
    """
    began = time.monotonic()
    prepared = await service.in_thread(read)
    row = prepared.row
    service.check_prompt(len(row.token_ids))
    ticket.take(
        prompt_tokens=len(row.token_ids),
        media_seconds=prepared.audio_seconds,
        nbytes=sum(item.nbytes for item in row.media),
    )
    service.metrics.request_read_time_seconds.observe(time.monotonic() - began)
    job = service.thread_job(
        lambda: service.model.submit(prepared.request, row)
    )  # which compiles the grammar of its output
    try:
        handle = await asyncio.shield(asyncio.wrap_future(job))
    except asyncio.CancelledError:
        job.add_done_callback(_cancel_handle)
        raise
    return Generation(service, ticket, prepared, (handle, *handle.alternatives))


def _cancel_handle(job: Future[Handle]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().cancel()


@contextmanager
def ended(generation: Generation) -> Iterator[Generation]:
    """Rows that run when the context is left are ended: nobody waits for them any more."""
    try:
        yield generation
    finally:
        generation.end()

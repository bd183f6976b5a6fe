"""One transcription through the engine: read as it is decoded, many pieces at once, and ended with its client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, BinaryIO, Generic, TypeVar

from phi4mm.engine.handle import Handle
from phi4mm.engine.row import Group
from phi4mm.errors import AudioError
from phi4mm.inputs.audio_file import AudioSource, decoded_blocks
from phi4mm.inputs.prompt import render, speech_prompt
from phi4mm.serve.admission import Ticket
from phi4mm.serve.errors import ApiError
from phi4mm.serve.logs import log
from phi4mm.serve.service import Service
from phi4mm.transcription.pieces import Piece
from phi4mm.transcription.transcriber import Attempt, Transcription
from phi4mm.types import Reply, Request, Segment, TokenLogprob

_Work = TypeVar("_Work")
Samples = tuple[Any, int]


@dataclass(frozen=True)
class Part:
    """A segment, and the reply that its text is of."""

    segment: Segment
    reply: Reply


@dataclass(frozen=True)
class TextDelta:
    """Some more of a transcript's text, and the log-probabilities of its tokens if they are asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass
class SpeechUsage:
    """What a transcription took so far: tokens of all decodings, and seconds of audio."""

    input_tokens: int = 0
    audio_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


class Upload:
    """An uploaded file, decoded as it is read.

    Args:
        file: at its start.
        max_seconds: that it may last.
        name: what errors call it.
    """

    def __init__(self, file: BinaryIO, max_seconds: float, name: str = "file") -> None:
        self._name = name
        self._file = file
        self._max_seconds = max_seconds
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._closed.is_set()

    def blocks(self, max_seconds: float | None = None) -> Iterator[Samples]:
        """Its samples from the start, block by block, as ``Phi4MM.transcribe_stream`` takes them.

        Args:
            max_seconds: a smaller bound of this use.

        Raises:
            AudioError: it is no audio.
            ApiError: it is too long, which shows once so much is read.
        """
        most = self._max_seconds if max_seconds is None else min(max_seconds, self._max_seconds)
        self._file.seek(0)
        seconds = 0.0
        for samples, rate in decoded_blocks(self._file, self._name):
            if self._closed.is_set():
                return
            seconds += len(samples) / rate
            if seconds > most:
                raise ApiError(413, f"{self._name}: is longer than this server's {most:g} s", param=self._name)
            yield samples, rate

    def close(self) -> None:
        """Stop whoever reads, and let the file go."""
        self._closed.set()
        self._file.close()


@dataclass(eq=False)
class _Place(Generic[_Work]):
    """A piece on its way, in its order."""

    piece: Piece
    work: _Work
    taken: dict[str, Any]


class Recognition:
    """One audio's transcription. It must be closed.

    One piece at a time is decoded in any case; more of them, up to ``SpeechOptions.batch_size``, where there is room.

    Args:
        ticket: with one row.
        audio: what ``Phi4MM.transcribe_stream`` takes.
        options: the other arguments of that.
        logprobs: whether replies report those of their tokens.

    Attributes:
        usage: so far.
    """

    def __init__(
        self,
        service: Service,
        ticket: Ticket,
        audio: AudioSource,
        options: Mapping[str, Any],
        *,
        logprobs: bool = False,
    ) -> None:
        self._service = service
        self._ticket = ticket
        self._run: Transcription = service.model.transcribe_stream(audio, **options)
        self._iterator = self._run.pieces()
        self._logprobs = 0 if logprobs else None
        self._group = Group(self._run.batch_size)
        self._text_tokens = _num_text_tokens(service, options)
        service.check_prompt(self._text_tokens)
        self._going: set[_Place[Any]] = set()
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._handles: set[Handle] = set()
        self._first_text: float | None = None
        self.usage = SpeechUsage()
        self.adapters: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds of audio that were read."""
        return self._run.duration

    async def parts(self) -> AsyncGenerator[Part]:
        """The segments in order, each once it is sure: what fails is decoded again."""
        async with aclosing(self._places(lambda piece: self._task(self._part(piece)))) as places:
            async for place in places:
                part = await place.work
                self._end(place)
                if part is not None:
                    self._seen()
                    yield part

    async def text(self) -> AsyncGenerator[TextDelta]:
        """The text as it is decoded, together the transcript. Nothing is decoded again: what was given is given."""
        begun = False
        async with aclosing(self._places(lambda piece: self._begin(piece, 0))) as places:
            async for place in places:
                handle, start, num_given = place.work, True, 0
                async for piece in handle:
                    self._seen()
                    logprobs = handle.logprobs(num_given)
                    num_given += len(logprobs)
                    piece = piece.lstrip() if start else piece
                    if piece:
                        yield TextDelta(f" {piece}" if start and begun else piece, logprobs)
                        start, begun = False, True
                reply = await handle
                self._count(reply, handle)
                self._handles.discard(handle)
                if rest := (reply.logprobs or ())[num_given:]:
                    yield TextDelta("", rest)
                self._end(place)

    def finished(self) -> None:
        """Count what was done, at the end."""
        metrics, now = self._service.metrics, time.monotonic()
        spent, usage = now - self._ticket.arrived, self.usage
        metrics.prompt_tokens.inc(usage.input_tokens)
        metrics.generation_tokens.inc(usage.output_tokens)
        metrics.adapter_requests.labels("+".join(self.adapters) or "none").inc()
        metrics.audio_seconds.inc(self.duration)
        metrics.e2e_request_latency_seconds.observe(spent)
        if self.duration:
            metrics.real_time_factor.observe(spent / self.duration)
        log(
            "transcribed",
            adapters="+".join(self.adapters) or None,
            prompt_tokens=usage.input_tokens,
            new_tokens=usage.output_tokens,
            audio_seconds=round(self.duration, 2),
        )

    def close(self) -> None:
        """End what goes on."""
        for task in self._tasks:
            task.cancel()
        for handle in self._handles:
            handle.cancel()

    async def _places(self, start: Callable[[Piece], _Work]) -> AsyncGenerator[_Place[_Work]]:
        """The pieces in order, each begun by ``start`` ahead of what is asked for."""
        queue: asyncio.Queue[_Place[_Work] | BaseException | None] = asyncio.Queue()
        reader = self._task(self._read(queue, start))
        try:
            while (place := await queue.get()) is not None:
                if isinstance(place, BaseException):
                    raise place
                yield place
        finally:
            reader.cancel()
            self.close()

    async def _read(
        self, queue: asyncio.Queue[_Place[_Work] | BaseException | None], start: Callable[[Piece], _Work]
    ) -> None:
        try:
            while (piece := await self._service.in_upload_thread(lambda: next(self._iterator, None))) is not None:
                taken = await self._room(piece)
                place = _Place(piece, start(piece), taken)
                self._going.add(place)
                queue.put_nowait(place)
            queue.put_nowait(None)
        except AudioError as error:
            queue.put_nowait(ApiError(400, str(error), param="file"))
        except Exception as error:
            queue.put_nowait(error)

    async def _room(self, piece: Piece) -> dict[str, Any]:
        """Wait until a piece may be decoded; what it takes beside the request's own row."""
        while self._going:
            needed: dict[str, Any] = {
                "rows": 1,
                "media_seconds": len(piece.samples) / piece.sampling_rate,
                "nbytes": piece.samples.nbytes,
            }
            if len(self._going) < 2 * self._run.batch_size and self._ticket.try_take(**needed):
                return needed
            self._ended.clear()
            await self._ended.wait()
        return {}

    def _end(self, place: _Place[Any]) -> None:
        self._ticket.give(**place.taken)
        self._going.discard(place)
        self._ended.set()

    async def _part(self, piece: Piece) -> Part | None:
        attempts: list[Attempt] = []
        replies: list[Reply] = []
        while not attempts or not self._run.is_settled(attempts[-1], len(attempts) - 1):
            handle = self._begin(piece, len(attempts))
            replies.append(await handle)
            self._handles.discard(handle)
            self._count(replies[-1], handle)
            attempts.append(self._run.attempt(replies[-1], piece, len(attempts)))
        best = self._run.best(attempts)
        if not best.text:
            return None
        segment = await self._service.in_thread(lambda: self._run.segment(piece, best))  # words are timed by the engine
        return Part(segment, replies[attempts.index(best)])

    def _begin(self, piece: Piece, number: int) -> Handle:
        handle = self._run.begin(piece, number, self._group, logprobs=self._logprobs)
        self._handles.add(handle)
        return handle

    def _count(self, reply: Reply, handle: Handle) -> None:
        self._service.metrics.observe_row(handle.times)
        self.adapters = reply.route.adapters
        self.usage.input_tokens += reply.usage.prompt_tokens
        self.usage.audio_tokens += reply.usage.prompt_tokens - self._text_tokens
        self.usage.output_tokens += reply.usage.new_tokens
        self.usage.seconds = self.duration
        self._service.metrics.request_success.labels(reply.finish_reason).inc()

    def _seen(self) -> None:
        if self._first_text is None:
            self._first_text = time.monotonic()
            self._service.metrics.time_to_first_token_seconds.observe(self._first_text - self._ticket.arrived)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _num_text_tokens(service: Service, options: Mapping[str, Any]) -> int:
    """Tokens of a prompt beside those of its audio."""
    wording = {name: options[name] for name in ("prompt", "hotwords") if name in options}
    text = speech_prompt(options.get("task", "transcribe"), options.get("to"), **wording)
    pieces = render(Request(text, audios=[None]), service.model.processor.tokenizer)
    return sum(isinstance(piece, int) for piece in pieces)

"""``/v1/realtime?intent=transcription``: a websocket that gets audio and gives transcripts, turn by turn."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from phi4mm.errors import Phi4MMError
from phi4mm.inputs.audio import LOW_SAMPLING_RATE, SAMPLING_RATE
from phi4mm.serve.errors import ApiError, as_api_error, bad_request
from phi4mm.serve.logs import log
from phi4mm.serve.openai.messages import check_text
from phi4mm.serve.openai.realtime_session import Decoder, Session
from phi4mm.serve.openai.transcript import logprob_items, token_usage
from phi4mm.serve.openai.transcriptions import instruction, max_piece_tokens
from phi4mm.serve.service import Service, dumps, service_of
from phi4mm.serve.speech import Recognition
from phi4mm.serve.turns import Agreement, Started, Stopped, TurnBuffer
from phi4mm.types import TokenLogprob

router = APIRouter(tags=["realtime"])
_MOST_WAITING = 4  # committed items that wait to be transcribed; then no more audio is received
_PARTIAL_SECONDS = 0.6  # of new audio, after which an open turn is decoded again
_LEAST_SECONDS = 0.1  # that may be committed
_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_BUFFER = "input_audio_buffer"


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    """Transcribe live audio."""
    service = service_of(socket)
    intent = socket.query_params.get("intent", "transcription")
    if intent != "transcription":
        raise bad_request("intent: only live transcription is served; connect with intent=transcription", "intent")
    service.resolve(socket.query_params.get("model"))
    with service.admission.enter_live():
        offered = socket.scope.get("subprotocols") or []
        await socket.accept("realtime" if "realtime" in offered else None)
        connection = _Connection(service, socket)
        await connection.run()


@dataclass
class _Item:
    """A part of the audio that becomes a transcript.

    Attributes:
        samples: once it is committed.
        found: whether the server found where it begins and ends, so that all of it is speech.
        agreement: on what was shown of it.
    """

    name: str
    found: bool = False
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    agreement: Agreement = field(default_factory=Agreement)


class _Connection:
    """One client."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service = service
        self._socket = socket
        self._sending = asyncio.Lock()
        self._session = Session().updated(
            {"audio": {"input": {"transcription": {"model": socket.query_params.get("model")}}}}
        )
        self._name = f"sess_{secrets.token_hex(12)}"
        self._decoder = Decoder(self._session.input.format)
        self._buffer = TurnBuffer(self._turn_options())
        self._open: _Item | None = None
        self._last_item: str | None = None
        self._waiting: asyncio.Queue[_Item] = asyncio.Queue(_MOST_WAITING)
        self._partial: asyncio.Task[None] | None = None
        self._partial_seconds = 0.0  # of the open turn that were decoded last

    async def run(self) -> None:
        """Serve it until it goes."""
        await self._send("session.created", session=self._session.to_dict(self._name))
        tasks = [asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._transcribe_items())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, WebSocketDisconnected):
            return
        finally:
            await _cancelled([*tasks, *([self._partial] if self._partial else [])])

    async def _receive(self) -> None:
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            name = None
            try:
                given = _parsed(message.get("text"))
                event_id = given.get("event_id")
                name = event_id if isinstance(event_id, str) else None
                await self._handle(given)
            except (ApiError, Phi4MMError, ValidationError) as error:
                await self._send("error", error={**as_api_error(error).to_dict()["error"], "event_id": name})

    async def _handle(self, given: Mapping[str, Any]) -> None:
        kind = given.get("type")
        if kind == "session.update":
            await self._update(given.get("session"))
        elif kind == f"{_BUFFER}.append":
            await self._append(given.get("audio"))
        elif kind == f"{_BUFFER}.commit":
            await self._commit()
        elif kind == f"{_BUFFER}.clear":
            self._end_partial()
            self._open = None
            self._buffer.clear()
            await self._send(f"{_BUFFER}.cleared")
        else:
            raise bad_request(
                f"type: is none of session.update, {_BUFFER}.append, {_BUFFER}.commit and {_BUFFER}.clear", "type"
            )

    async def _update(self, change: Any) -> None:
        if not isinstance(change, Mapping):
            raise bad_request("session: expected an object", "session")
        session = self._session.updated(change)
        wording = session.input.transcription
        self._service.resolve(wording.model)
        check_text([wording.prompt or "", *wording.keywords], self._service.limits, "session")
        before, self._session = self._session, session
        if session.input.format != before.input.format:
            self._decoder = Decoder(session.input.format)
        if session.input.turn_detection != before.input.turn_detection:
            self._end_partial()
            self._open = None
            self._buffer.options = self._turn_options()
        await self._send("session.updated", session=session.to_dict(self._name))

    def _turn_options(self) -> Any:
        detection = self._session.input.turn_detection
        return None if detection is None else detection.options(self._service.model.model.config.front_end.max_seconds)

    async def _append(self, audio: Any) -> None:
        if not isinstance(audio, str):
            raise bad_request("audio: expected base64", "audio")
        events = await self._service.in_thread(lambda: list(self._buffer.push(self._decoder.push(audio))))
        for one in events:
            if isinstance(one, Started):
                self._open = _Item(_item_name(), found=True)
                self._partial_seconds = 0.0
                await self._send(
                    f"{_BUFFER}.speech_started", audio_start_ms=round(1000 * one.seconds), item_id=self._open.name
                )
            else:
                assert self._open is not None
                await self._send(
                    f"{_BUFFER}.speech_stopped", audio_end_ms=round(1000 * one.seconds), item_id=self._open.name
                )
                await self._committed(self._open, one)
        limit = self._service.limits.max_live_seconds
        if self._buffer.seconds > limit:
            self._buffer.clear()
            raise ApiError(
                413, f"{_BUFFER}: over {limit:g} s are not committed; they are dropped", code=f"{_BUFFER}_full"
            )
        if self._open is not None and self._buffer.seconds >= self._partial_seconds + _PARTIAL_SECONDS:
            self._begin_partial(self._open)

    async def _commit(self) -> None:
        if self._buffer.seconds < _LEAST_SECONDS:
            raise bad_request(
                f"{_BUFFER}: holds {1000 * self._buffer.seconds:.0f} ms; at least {1000 * _LEAST_SECONDS:.0f} ms can "
                "be committed",
                code=f"{_BUFFER}_commit_empty",
            )
        await self._committed(self._open or _Item(_item_name()), self._buffer.commit())

    async def _committed(self, item: _Item, stopped: Stopped) -> None:
        self._end_partial()
        self._open = None
        item.samples = stopped.samples
        before, self._last_item = self._last_item, item.name
        await self._send(f"{_BUFFER}.committed", item_id=item.name, previous_item_id=before)
        await self._waiting.put(item)

    async def _transcribe_items(self) -> None:
        while True:
            item = await self._waiting.get()
            try:
                await self._transcribe(item)
            except (ApiError, Phi4MMError) as error:
                shown = as_api_error(error)
                if shown.status >= 500 and not isinstance(error, ApiError):
                    log("failed", logging.ERROR, error=error)
                await self._send_of(item, "failed", error=shown.to_dict()["error"])

    async def _transcribe(self, item: _Item) -> None:
        wants_logprobs = self._session.wants_logprobs
        tokens: list[TokenLogprob] = []
        with self._service.admission.enter(rows=1) as ticket:
            options = self._options() | {"vad": not item.found}
            recognition = Recognition(
                self._service, ticket, self._audio(item.samples), options, logprobs=wants_logprobs
            )
            try:
                if item.found:
                    parts = [part async for part in recognition.parts()]
                    text = " ".join(part.segment.text for part in parts)
                    tokens += (token for part in parts for token in part.reply.logprobs or ())
                    if more := item.agreement.finish(text):
                        await self._send_delta(item, more, tokens if more == text else ())
                else:
                    text = ""
                    async for delta in recognition.text():
                        text += delta.text
                        tokens += delta.logprobs
                        if delta.text:
                            await self._send_delta(item, delta.text, delta.logprobs)
                recognition.finished()
            finally:
                recognition.close()
        logprobs = {"logprobs": self._logprobs(tokens)} if wants_logprobs else {}
        await self._send_of(item, "completed", transcript=text, usage=token_usage(recognition.usage), **logprobs)

    def _begin_partial(self, item: _Item) -> None:
        """Decode the open turn as far as it goes, unless that is being done, or others wait."""
        if (self._partial is None or self._partial.done()) and self._waiting.empty():
            self._partial_seconds = self._buffer.seconds
            self._partial = asyncio.ensure_future(self._show_partial(item, self._buffer.samples))

    def _end_partial(self) -> None:
        if self._partial is not None:
            self._partial.cancel()

    async def _show_partial(self, item: _Item, samples: np.ndarray) -> None:
        try:
            with self._service.admission.enter(rows=1) as ticket:
                recognition = Recognition(self._service, ticket, self._audio(samples), self._options() | {"vad": False})
                try:
                    text = "".join([delta.text async for delta in recognition.text()])
                finally:
                    recognition.close()
        except (ApiError, Phi4MMError) as error:  # the turn's own transcription reports it
            log("no partial transcript", logging.DEBUG, reason=as_api_error(error).code)
            return
        if more := item.agreement.push(text):
            await self._send_delta(item, more, ())

    def _audio(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Samples as the model takes them: telephone audio at its own rate."""
        if self._decoder.format.sampling_rate >= SAMPLING_RATE:
            return samples, SAMPLING_RATE
        import soxr

        return soxr.resample(samples, SAMPLING_RATE, LOW_SAMPLING_RATE, quality="HQ"), LOW_SAMPLING_RATE

    def _options(self) -> dict[str, Any]:
        """The arguments of ``Phi4MM.transcribe_stream``."""
        wording = self._session.input.transcription
        adapter = self._service.resolve(wording.model)
        options: dict[str, Any] = {
            "prompt": instruction(guidance=wording.prompt),
            "hotwords": wording.keywords,
            "max_new_tokens": max_piece_tokens(self._service),
        }
        return options if adapter is None else {**options, "adapter": adapter}

    async def _send_delta(self, item: _Item, text: str, tokens: Any) -> None:
        logprobs = {"logprobs": self._logprobs(tokens)} if self._session.wants_logprobs and tokens else {}
        await self._send_of(item, "delta", delta=text, **logprobs)

    def _logprobs(self, tokens: Any) -> list[dict[str, Any]]:
        return logprob_items(tokens, self._service.model.processor.tokenizer)

    async def _send_of(self, item: _Item, kind: str, **values: Any) -> None:
        await self._send(f"{_TRANSCRIPTION}.{kind}", item_id=item.name, content_index=0, **values)

    async def _send(self, kind: str, **values: Any) -> None:
        async with self._sending:
            await self._socket.send_text(dumps({"type": kind, "event_id": f"event_{secrets.token_hex(10)}", **values}))


def _item_name() -> str:
    return f"item_{secrets.token_hex(10)}"


def _parsed(text: str | None) -> Mapping[str, Any]:
    if text is None:
        raise bad_request("expected a text message of JSON; audio is sent in it as base64")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_request("the message is not JSON") from error
    if not isinstance(given, Mapping):
        raise bad_request('the message is not an object; expected {"type": ...}')
    return given


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task

"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from phi4mm.diarization.diarizer import check_installed
from phi4mm.diarization.speakers import Diarization
from phi4mm.errors import AudioError
from phi4mm.inputs.prompt import TRANSCRIBE_PROMPT, speech_prompt
from phi4mm.serve.admission import Ticket
from phi4mm.serve.errors import ApiError, bad_request
from phi4mm.serve.form import read_form
from phi4mm.serve.media import Medium, content_of
from phi4mm.serve.openai.messages import check_text
from phi4mm.serve.openai.transcript import (
    Shown,
    diarized_json,
    diarized_segment,
    logprob_items,
    plain_json,
    subtitles,
    text_of,
    token_usage,
    verbose_json,
)
from phi4mm.serve.service import Service, service_of
from phi4mm.serve.speech import Recognition, Upload
from phi4mm.serve.sse import DONE, EventStream, begun, event, until_disconnect
from phi4mm.types import DEFAULT_MAX_NEW_TOKENS, Segment, TokenLogprob

router = APIRouter(tags=["audio"])
_Body = TypeVar("_Body", bound=BaseModel)
_MOST_WORDS = 1000
_MOST_SPEAKERS = 4
_MOST_REFERENCE_SECONDS = 30.0
_LANGUAGE = r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}$"


class VadBody(BaseModel):
    """How speech is found. ``prefix_padding_ms`` is taken and passed over: pieces keep 0.4 s around speech."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["server_vad"]
    threshold: float | None = Field(None, ge=0, le=1)
    silence_duration_ms: int | None = Field(None, ge=1, le=60_000)
    prefix_padding_ms: int | None = None


class SpeechBody(BaseModel):
    """The fields of both endpoints, beside ``file``; ``instruction`` is ours: it stands for the task's own wording."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    instruction: str | None = None
    temperature: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)


class TranscriptionBody(SpeechBody):
    """The fields of a transcription."""

    language: str | None = Field(None, pattern=_LANGUAGE)
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"] = "json"
    timestamp_granularities: list[Literal["word", "segment"]] = ["segment"]
    include: list[Literal["logprobs"]] = []
    keywords: list[str] = Field([], max_length=_MOST_WORDS)
    hotwords: list[str] = Field([], max_length=_MOST_WORDS)
    stream: bool = False
    chunking_strategy: Literal["auto"] | VadBody | None = None
    known_speaker_names: list[str] = Field([], max_length=_MOST_SPEAKERS)
    known_speaker_references: list[str] = Field([], max_length=_MOST_SPEAKERS)

    @property
    def all_hotwords(self) -> list[str]:
        """Both fields; a text of several words in one field separates them by commas."""
        given = (part.strip() for one in (*self.keywords, *self.hotwords) for part in one.split(","))
        return [word for word in given if word]


class TranslationBody(SpeechBody):
    """The fields of a translation; ``to`` is ours: another language than English, by its English name."""

    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    to: str = Field("English", pattern=r"^\w[\w ()'-]{0,63}$")


@router.post("/v1/audio/transcriptions")
async def transcriptions(request: HttpRequest) -> Response:
    """What is said in an audio file."""
    service = service_of(request)
    with ExitStack() as stack:
        ticket, upload, body = await _opened(request, service, TranscriptionBody, stack)
        shown = Shown(
            language=body.language,
            segments="segment" in body.timestamp_granularities,
            words="word" in body.timestamp_granularities,
            logprobs="logprobs" in body.include,
        )
        _check_transcription(body, shown)
        options = _options(service, body, "transcribe", hotwords=body.all_hotwords)
        options["word_timestamps"] = shown.words or body.response_format == "diarized_json"
        if isinstance(body.chunking_strategy, VadBody):
            options |= _vad_options(body.chunking_strategy)
        recognition = Recognition(service, ticket, upload.blocks(), options, logprobs=shown.logprobs)
        stack.callback(recognition.close)
        speakers = _Speakers(service, upload, body) if body.response_format == "diarized_json" else None
        answer = _Answer(service, body.response_format, shown, recognition, speakers)
        if not body.stream:
            return await until_disconnect(request, answer.whole())
        events = await until_disconnect(request, begun(answer.events(), service.options.ping_seconds))
        return EventStream(events, stack.pop_all(), ping_seconds=service.options.ping_seconds)


@router.post("/v1/audio/translations")
async def translations(request: HttpRequest) -> Response:
    """What is said in an audio file, in English."""
    service = service_of(request)
    with ExitStack() as stack:
        ticket, upload, body = await _opened(request, service, TranslationBody, stack)
        options = _options(service, body, "translate", to=body.to)
        shown = Shown(task="translate", language=body.to.lower())
        recognition = Recognition(service, ticket, upload.blocks(), options)
        stack.callback(recognition.close)
        answer = _Answer(service, body.response_format, shown, recognition)
        return await until_disconnect(request, answer.whole())


async def _opened(
    request: HttpRequest, service: Service, kind: type[_Body], stack: ExitStack
) -> tuple[Ticket, Upload, _Body]:
    """A place for one row, the file and the other fields of a form; the first two until ``stack`` is closed."""
    ticket = stack.enter_context(service.admission.enter(rows=1))
    form = await read_form(request)
    upload = Upload(form.file, service.limits.max_upload_seconds)
    stack.callback(upload.close)
    return ticket, upload, form.checked(kind)


def _check_transcription(body: TranscriptionBody, shown: Shown) -> None:
    """Refuse what does not go together."""
    format = body.response_format
    if shown.words and format in ("json", "text", "diarized_json"):
        raise bad_request(
            f"timestamp_granularities: words are not part of {format}; ask for response_format=verbose_json, or for "
            "srt or vtt, whose cues then begin and end with words",
            "timestamp_granularities",
        )
    if shown.logprobs and format != "json":
        raise bad_request(f"include: logprobs are not part of {format}; ask for response_format=json", "include")
    if len(body.known_speaker_names) != len(body.known_speaker_references):
        raise bad_request("known_speaker_names: expected as many as known_speaker_references", "known_speaker_names")
    if len(set(body.known_speaker_names)) < len(body.known_speaker_names):
        raise bad_request("known_speaker_names: one is given twice", "known_speaker_names")
    if format == "diarized_json":
        check_installed()
    if body.stream and format in ("srt", "vtt", "verbose_json"):
        raise bad_request(
            f"stream: {format} is not streamed; ask for response_format=json, text or diarized_json", "stream"
        )


def _options(
    service: Service, body: SpeechBody, task: str, *, to: str | None = None, hotwords: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments of ``Phi4MM.transcribe_stream``."""
    adapter = service.resolve(body.model)
    texts = [body.prompt or "", body.instruction or "", *hotwords]
    check_text(texts, service.limits, "prompt")
    options: dict[str, Any] = {
        "task": task,
        "to": to,
        "prompt": instruction(body.instruction or _wording(task, to), body.prompt),
        "hotwords": hotwords,
        "max_new_tokens": max_piece_tokens(service),
        "temperature": body.temperature,
        "seed": body.seed,
    }
    return options if adapter is None else {**options, "adapter": adapter}


def instruction(wording: str = TRANSCRIBE_PROMPT, guidance: str | None = None) -> str:
    """The instruction that the model gets: the task's, with the client's guidance after it."""
    return f"{wording} {guidance.strip()}" if guidance and guidance.strip() else wording


def _wording(task: str, to: str | None) -> str:
    content = speech_prompt(task, to)
    return content if isinstance(content, str) else "".join(map(str, content))


def max_piece_tokens(service: Service) -> int:
    """The most tokens of one piece of speech."""
    return min(DEFAULT_MAX_NEW_TOKENS, service.limits.max_output_tokens)


def _vad_options(given: VadBody) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if given.threshold is not None:
        options["vad_threshold"] = min(max(given.threshold, 0.2), 0.99)
    if given.silence_duration_ms is not None:
        options["min_silence"] = given.silence_duration_ms / 1000
    return options


@dataclass(frozen=True)
class _Speakers:
    """Who speaks in an upload."""

    service: Service
    upload: Upload
    body: TranscriptionBody

    async def found(self) -> Diarization:
        """Look for them."""
        return await asyncio.to_thread(self._find)

    def _find(self) -> Diarization:
        diarizer, limit = self.service.diarizer, self.service.limits.max_diarized_seconds
        try:
            found = diarizer(self.upload.blocks(limit), cancelled=lambda: self.upload.closed)
        except AudioError as error:
            raise ApiError(400, str(error), param="file") from error
        return found.named(dict(self._known())) if self.body.known_speaker_names else found

    def _known(self) -> Iterator[tuple[str, np.ndarray]]:
        for index, name in enumerate(self.body.known_speaker_names):
            param = f"known_speaker_references[{index}]"
            content = content_of(Medium("audio", param, self.body.known_speaker_references[index]))
            reference = Upload(io.BytesIO(content), _MOST_REFERENCE_SECONDS, param)
            voice = self.service.diarizer(reference.blocks(), cancelled=lambda: self.upload.closed).main_voice()
            if voice is None:
                raise bad_request(f"{param}: nobody is found to speak in it; send 2 to 10 s of speech", param)
            yield name, voice


@dataclass
class _Answer:
    """A transcription's answer on the wire."""

    service: Service
    format: str
    shown: Shown
    recognition: Recognition
    speakers: _Speakers | None = None

    async def whole(self) -> Response:
        """The response of a request that does not stream."""
        if self.speakers is not None:
            segments = [segment async for segment in self._spoken(self.speakers)]
            self.recognition.finished()
            return JSONResponse(diarized_json(segments, self.recognition.duration, self.recognition.usage))
        parts = [part async for part in self.recognition.parts()]
        self.recognition.finished()
        duration = self.recognition.duration
        if self.format == "text":
            return PlainTextResponse(text_of(parts) + "\n")
        if self.format in ("srt", "vtt"):
            return PlainTextResponse(subtitles(parts, duration, self.format))
        if self.format == "verbose_json":
            return JSONResponse(verbose_json(parts, duration, self.shown))
        logprobs = self._logprobs(token for part in parts for token in part.reply.logprobs or ())
        return JSONResponse(plain_json(text_of(parts), self.recognition.usage, logprobs))

    def events(self) -> AsyncGenerator[bytes]:
        """The events of a request that streams."""
        return self._diarized_events(self.speakers) if self.speakers is not None else self._text_events()

    async def _diarized_events(self, speakers: _Speakers) -> AsyncGenerator[bytes]:
        texts: list[str] = []
        async with aclosing(self._spoken(speakers)) as segments:
            async for segment in segments:
                shown = diarized_segment(len(texts), segment)
                text = f" {segment.text}" if texts else segment.text
                texts.append(text)
                yield event({"type": "transcript.text.delta", "delta": text, "segment_id": shown["id"]})
                yield event(shown)
        self.recognition.finished()
        usage = token_usage(self.recognition.usage)
        yield event({"type": "transcript.text.done", "text": "".join(texts), "usage": usage})
        yield DONE

    async def _spoken(self, speakers: _Speakers) -> AsyncGenerator[Segment]:
        """Segments of one speaker each."""
        diarization = await speakers.found()
        async with aclosing(self.recognition.parts()) as parts:
            async for part in parts:
                for segment in diarization.attributed(part.segment):
                    yield segment

    async def _text_events(self) -> AsyncGenerator[bytes]:
        texts: list[str] = []
        tokens: list[TokenLogprob] = []
        async for delta in self.recognition.text():
            texts.append(delta.text)
            tokens += delta.logprobs
            if delta.text:
                yield event(self._delta(delta.text, delta.logprobs))
        self.recognition.finished()
        done = {
            "type": "transcript.text.done",
            "text": "".join(texts),
            "usage": token_usage(self.recognition.usage),
        }
        logprobs = self._logprobs(tokens)
        yield event(done if logprobs is None else {**done, "logprobs": logprobs})
        yield DONE

    def _delta(self, text: str, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        delta: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
        logprobs = self._logprobs(tokens)
        return delta if logprobs is None else {**delta, "logprobs": logprobs}

    def _logprobs(self, tokens: Any) -> list[dict[str, Any]] | None:
        return logprob_items(tokens, self.service.model.processor.tokenizer) if self.shown.logprobs else None

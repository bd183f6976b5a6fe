"""Many clips, each transcribed whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from phi4mm.content import Content
from phi4mm.engine.client import Client
from phi4mm.errors import Phi4MMError
from phi4mm.inputs.audio import load_audio
from phi4mm.inputs.processor import Row
from phi4mm.types import Reply, Request, Segment, Transcript
from phi4mm.validate import wrong


def transcripts(
    client: Client, audios: Sequence[Any], request: Request, *, batch_size: int
) -> list[Transcript | Phi4MMError]:
    """Each clip's transcript or error, in order; at most ``batch_size`` of them are decoded at a time.

    Args:
        client: of the engine.
        audios: see ``load_audio``.
        request: the instruction and how to decode it; its audio is filled in.
    """
    durations: dict[int, float] = {}

    def read(index: int) -> tuple[Request, Row]:
        waveform = load_audio(audios[index])
        durations[index] = waveform.duration
        made = replace(request, audios=[(waveform.samples, waveform.sampling_rate)])
        return made, client.processor.row(made)

    results = client.results([partial(read, index) for index in range(len(audios))], batch_size=batch_size)
    return [
        result if isinstance(result, Phi4MMError) else _transcript(result, durations[index])
        for index, result in enumerate(results)
    ]


def speech_request(text: Content, options: Mapping[str, Any]) -> Request:
    """The request of a transcription, whose audio is filled in later.

    Raises:
        PromptError: an option is bad, or asks for what a transcript cannot hold.
    """
    request = Request.make(text, **options)
    if request.sampling.n != 1:
        raise wrong("n", request.sampling.n, "1: a transcript is one; call it several times, or chat with the audio")
    if request.sampling.logprobs is not None:
        raise wrong("logprobs", request.sampling.logprobs, "None: a transcript has none; chat with the audio instead")
    return request


def _transcript(reply: Reply, duration: float) -> Transcript:
    text = reply.text.strip()
    return Transcript(text, (Segment(0.0, duration, text),) if text else (), duration)

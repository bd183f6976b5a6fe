"""How good a checkpoint is on speakers and pictures that training never met, through the public ``Phi4MM``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import jiwer
import numpy as np
from PIL import Image

from phi4mm.api import Phi4MM
from phi4mm.inputs.audio import LOW_SAMPLING_RATE, SAMPLING_RATE, Waveform, load_audio
from phi4mm.train.augment import resample
from phi4mm.train.data import Clip
from phi4mm.train.pictures import Picture
from phi4mm.train.timing import word_time_errors
from phi4mm.types import Request

MAX_NEW_TOKENS = 48  # a clip's words at most; a reply that does not end is cut here and counted wrong
MAX_ANSWER_TOKENS = 8
BATCH_SIZE = 32
AS_ROUTED = "as routed"
SPEECH_ADAPTERS = ("auto", None, "vision")
PICTURE_ADAPTERS = ("auto", None, "speech")


@dataclass(frozen=True)
class Figure:
    """What was measured: ``value`` is the word error rate, the share of right answers, or the median absolute error in
    seconds, of ``count`` clips or questions. ``condition`` tells how the clips were changed, which adapter was used, or
    what the error is of."""

    measure: str  # "WER", "accuracy" or "error"
    group: str
    condition: str
    value: float
    count: int
    words: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AskedPicture:
    """A picture, a question about it in text or as a clip, and the right answer."""

    image: Image.Image
    question: str
    answer: str
    clip: Clip | None = None


def as_recorded(waveform: Waveform) -> Waveform:
    return waveform


def as_8_khz(waveform: Waveform) -> Waveform:
    return resample(waveform, LOW_SAMPLING_RATE)


def as_16_khz(waveform: Waveform) -> Waveform:
    return resample(waveform, SAMPLING_RATE)


def in_noise(waveform: Waveform) -> Waveform:
    """White noise 20 dB below the speech."""
    level = float(np.sqrt(np.mean(waveform.samples**2))) / 10
    noise = np.random.default_rng(len(waveform.samples)).normal(0, level, len(waveform.samples))
    return Waveform((waveform.samples + noise).astype(np.float32), waveform.sampling_rate)


CONDITIONS: dict[str, Callable[[Waveform], Waveform]] = {
    "as recorded": as_recorded,
    "8 kHz": as_8_khz,
    "16 kHz": as_16_khz,
    "noise 20 dB": in_noise,
}


def word_error_rate(
    model: Phi4MM, clips: Sequence[Clip], condition: str = "as recorded", adapter: str | None = "auto"
) -> float:
    """Over all the clips: (substituted + left out + put in) / words."""
    change = CONDITIONS[condition]
    waveforms = [change(load_audio(clip.path)) for clip in clips]
    audios = [(waveform.samples, waveform.sampling_rate) for waveform in waveforms]
    transcripts = model.transcribe_batch(audios, batch_size=BATCH_SIZE, max_new_tokens=MAX_NEW_TOKENS, adapter=adapter)
    return jiwer.wer([" ".join(clip.words) for clip in clips], [transcript.text for transcript in transcripts])


def accuracy(model: Phi4MM, asked: Sequence[AskedPicture], adapter: str | None = "auto") -> float:
    """The share of questions that are answered to the letter."""
    requests = [
        Request.make(
            "" if one.clip else one.question,
            images=[one.image],
            audios=[one.clip.path] if one.clip else [],
            adapter=adapter,
            max_new_tokens=MAX_ANSWER_TOKENS,
        )
        for one in asked
    ]
    replies = model.chat_batch(requests, batch_size=BATCH_SIZE)
    return sum(reply.text.strip() == one.answer for reply, one in zip(replies, asked, strict=True)) / len(asked)


def asked_of(pictures: Iterable[Picture], most: int | None = None) -> list[AskedPicture]:
    """Every question about every picture, or ``most`` of them, evenly spread."""
    asked = [AskedPicture(picture.image, q.text, q.answer) for picture in pictures for q in picture.questions]
    return asked[:: max(1, len(asked) // most)] if most else asked


def asked_aloud(clips: Sequence[Clip], pictures: Sequence[Picture], each: int) -> list[AskedPicture]:
    """Each spoken question about ``each`` random pictures of which it can be asked."""
    by_question: dict[str, list[AskedPicture]] = {}
    for one in asked_of(pictures):
        by_question.setdefault(one.question.rstrip("?"), []).append(one)
    random = Random(0)
    asked = []
    for clip in clips:
        known = by_question.get(" ".join(clip.words), [])
        asked += [replace(one, clip=clip) for one in random.sample(known, min(each, len(known)))]
    return asked


def speech_figures(model: Phi4MM, held_out: Mapping[str, Sequence[Clip]]) -> list[Figure]:
    """Every group as recorded, changed, and with other adapters than the router's."""
    found = []
    for group, clips in held_out.items():
        size = {"count": len(clips), "words": sum(len(clip.words) for clip in clips)}
        for condition in CONDITIONS:
            found.append(Figure("WER", group, condition, word_error_rate(model, clips, condition), **size))
        for adapter in SPEECH_ADAPTERS[1:]:
            value = word_error_rate(model, clips, adapter=adapter)
            found.append(Figure("WER", group, _with(adapter), value, **size))
    return found


def read_speech_figure(model: Phi4MM, clips: Sequence[Clip]) -> Figure:
    """Of clips of any length and vocabulary, which are cut at silences."""
    references = [" ".join(clip.words) for clip in clips]
    hypotheses = [model.transcribe(clip.path, max_new_tokens=MAX_NEW_TOKENS).text for clip in clips]
    size = {"count": len(clips), "words": sum(len(clip.words) for clip in clips)}
    return Figure("WER", "read speech", "as recorded", jiwer.wer(references, hypotheses), **size)


def word_time_figures(model: Phi4MM, voices: Mapping[str, Sequence[Clip]]) -> list[Figure]:
    """Median absolute errors of word time stamps, over all voices."""
    errors: dict[str, list[float]] = {"start": [], "end": []}
    for clips in voices.values():
        starts, ends = word_time_errors(model, clips)
        errors["start"] += starts
        errors["end"] += ends
    return [
        Figure("error", "word times", edge, float(np.median(seconds)), len(seconds), len(seconds))
        for edge, seconds in errors.items()
        if seconds
    ]


def picture_figures(model: Phi4MM, groups: Mapping[str, Sequence[AskedPicture]]) -> list[Figure]:
    """Every group with the router's adapter, with none, and with the wrong one."""
    return [
        Figure("accuracy", group, _with(adapter), accuracy(model, asked, adapter), len(asked), 0)
        for group, asked in groups.items()
        for adapter in PICTURE_ADAPTERS
    ]


def _with(adapter: str | None) -> str:
    return {"auto": AS_ROUTED, None: "no adapter"}.get(adapter, f"{adapter} adapter")

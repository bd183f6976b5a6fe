"""Word error rates of a checkpoint on speakers that training never heard, through the public ``transcribe_batch``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer
import numpy as np

from phi4mm.api import Phi4MM
from phi4mm.inputs.audio import LOW_SAMPLING_RATE, SAMPLING_RATE, Waveform, load_audio
from phi4mm.train.augment import resample
from phi4mm.train.data import Clip

MAX_NEW_TOKENS = 48  # a clip's words at most; a reply that does not end is cut here and counted wrong


@dataclass(frozen=True)
class Figure:
    """The word error rate of one group of clips: (substituted + left out + put in) / words."""

    group: str
    condition: str
    wer: float
    clips: int
    words: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


def word_error_rate(model: Phi4MM, clips: Sequence[Clip], condition: str = "as recorded") -> float:
    """Over all the clips."""
    change = CONDITIONS[condition]
    waveforms = [change(load_audio(clip.path)) for clip in clips]
    audios = [(waveform.samples, waveform.sampling_rate) for waveform in waveforms]
    transcripts = model.transcribe_batch(audios, batch_size=32, max_new_tokens=MAX_NEW_TOKENS)
    return jiwer.wer([" ".join(clip.words) for clip in clips], [transcript.text for transcript in transcripts])


def figures(model: Phi4MM, held_out: Mapping[str, Sequence[Clip]], conditions: Sequence[str]) -> list[Figure]:
    """Every group under every condition."""
    return [
        Figure(group, condition, word_error_rate(model, clips, condition), len(clips), sum(len(c.words) for c in clips))
        for group, clips in held_out.items()
        for condition in conditions
    ]

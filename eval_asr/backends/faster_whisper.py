"""Whisper on CTranslate2, by faster-whisper, with its own defaults (beam of 5, temperature fallback)."""

from __future__ import annotations

import numpy as np
from faster_whisper import WhisperModel

from eval_asr.backends import BackendOptions, Recogniser, one_by_one
from eval_asr.errors import BackendError


class FasterWhisperRecogniser(Recogniser):
    """One clip at a time, of any length."""

    sampling_rate = 16000

    def __init__(self, model: WhisperModel, options: BackendOptions) -> None:
        self.name = options.label
        self.model = model
        self.prompt = options.prompt

    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str | Exception]:
        return one_by_one(lambda clip: self._one(clip, language), clips)

    def _one(self, clip: np.ndarray, language: str) -> str:
        segments, _ = self.model.transcribe(clip, language=language, initial_prompt=self.prompt)
        return "".join(segment.text for segment in segments).strip()


def load(options: BackendOptions) -> Recogniser:
    if options.model is None:
        raise BackendError("backend 'faster-whisper' needs --model: a CTranslate2 folder or a name such as tiny.en")
    device, _, index = options.device.partition(":")
    compute_type = "default" if options.dtype == "auto" else options.dtype
    try:
        model = WhisperModel(
            options.model, device=device, device_index=int(index or 0), compute_type=compute_type, cpu_threads=0
        )
    except Exception as error:  # the library raises many kinds, for names, networks, files and devices
        reason = " ".join(str(error).split())[:300]
        raise BackendError(
            f"{options.model}: faster-whisper cannot load it ({type(error).__name__}: {reason}); "
            "name a CTranslate2 folder, or a device and dtype that are there"
        ) from error
    return FasterWhisperRecogniser(model, options)

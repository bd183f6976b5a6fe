"""Our own recogniser."""

from __future__ import annotations

import numpy as np

from eval_asr.backends import DEFAULT_PROMPT, BackendOptions, Recogniser
from phi4mm.api import Phi4MM
from phi4mm.inputs.audio import SAMPLING_RATE


class Phi4MMRecogniser:
    """``Phi4MM.transcribe_batch``."""

    sampling_rate = SAMPLING_RATE

    def __init__(self, model: Phi4MM, options: BackendOptions) -> None:
        self.name = options.label
        self.model = model
        self.prompt = options.prompt or DEFAULT_PROMPT
        self.max_new_tokens = options.max_new_tokens

    def transcribe(self, clips: list[np.ndarray]) -> list[str]:
        transcripts = self.model.transcribe_batch(
            [(clip, self.sampling_rate) for clip in clips],
            prompt=self.prompt,
            batch_size=len(clips),
            max_new_tokens=self.max_new_tokens,
        )
        return [transcript.text for transcript in transcripts]


def load(options: BackendOptions) -> Recogniser:
    model = Phi4MM.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    return Phi4MMRecogniser(model, options)

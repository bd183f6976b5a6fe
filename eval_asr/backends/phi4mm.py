"""Our own recogniser."""

from __future__ import annotations

import numpy as np

from eval_asr.backends import DEFAULT_PROMPT, BackendOptions, Recogniser
from phi4mm.api import Phi4MM
from phi4mm.inputs.audio import SAMPLING_RATE

# Seconds that the encoder hears at once. The leaderboard's clips are shorter, and it hands them over whole.
LONGEST_CLIP = 40.0


class Phi4MMRecogniser:
    """``Phi4MM.transcribe_batch``, which hears a clip whole; ``Phi4MM.transcribe`` for recordings longer than that."""

    sampling_rate = SAMPLING_RATE

    def __init__(self, model: Phi4MM, options: BackendOptions) -> None:
        self.name = options.label
        self.model = model
        self.prompt = options.prompt or DEFAULT_PROMPT
        self.max_new_tokens = options.max_new_tokens

    def transcribe(self, clips: list[np.ndarray]) -> list[str]:
        short = [clip for clip in clips if self._is_short(clip)]
        transcripts = iter(
            self.model.transcribe_batch(
                [(clip, self.sampling_rate) for clip in short],
                prompt=self.prompt,
                batch_size=max(len(short), 1),
                max_new_tokens=self.max_new_tokens,
            )
        )
        return [next(transcripts).text if self._is_short(clip) else self._long(clip) for clip in clips]

    def _is_short(self, clip: np.ndarray) -> bool:
        return len(clip) <= LONGEST_CLIP * self.sampling_rate

    def _long(self, clip: np.ndarray) -> str:
        audio = (clip, self.sampling_rate)
        return self.model.transcribe(audio, prompt=self.prompt, max_new_tokens=self.max_new_tokens).text


def load(options: BackendOptions) -> Recogniser:
    model = Phi4MM.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    return Phi4MMRecogniser(model, options)

"""Our own recogniser."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from eval_asr.backends import DEFAULT_PROMPT, BackendOptions, Recogniser, one_by_one
from phi4mm.api import Phi4MM
from phi4mm.errors import BatchError
from phi4mm.inputs.audio import SAMPLING_RATE

# Seconds that the encoder takes at once. The leaderboard's clips are shorter, and it hands them over whole.
LONGEST_CLIP = 40.0


class Phi4MMRecogniser(Recogniser):
    """``Phi4MM.transcribe_batch``, which takes a clip whole; ``Phi4MM.transcribe`` for longer recordings, beside it."""

    sampling_rate = SAMPLING_RATE

    def __init__(self, model: Phi4MM, options: BackendOptions) -> None:
        self.name = options.label
        self.model = model
        self.prompt = options.prompt or DEFAULT_PROMPT
        self.max_new_tokens = options.max_new_tokens

    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str | Exception]:
        long = [clip for clip in clips if not self._is_short(clip)]
        short = [clip for clip in clips if self._is_short(clip)]
        with ThreadPoolExecutor(max_workers=len(long) or 1) as pool:  # their rows share the engine's steps
            long_texts = pool.map(lambda clip: one_by_one(self._transcribe_long, [clip])[0], long)
            short_texts = iter(self._transcribe_short(short))
            return [next(short_texts if self._is_short(clip) else long_texts) for clip in clips]

    def close(self) -> None:
        self.model.close()

    def _is_short(self, clip: np.ndarray) -> bool:
        return len(clip) <= LONGEST_CLIP * self.sampling_rate

    def _transcribe_short(self, clips: list[np.ndarray]) -> Sequence[str | Exception]:
        if not clips:
            return []
        try:
            transcripts = self.model.transcribe_batch(
                [(clip, self.sampling_rate) for clip in clips],
                prompt=self.prompt,
                batch_size=len(clips),
                max_new_tokens=self.max_new_tokens,
            )
        except BatchError as error:
            if len(error.errors) == len(clips):  # what they have in common failed, such as the memory for all
                raise
            texts = ["" if result is None else result.text for result in error.results]
            return [error.errors.get(index, text) for index, text in enumerate(texts)]
        return [transcript.text for transcript in transcripts]

    def _transcribe_long(self, clip: np.ndarray) -> str:
        audio = (clip, self.sampling_rate)
        return self.model.transcribe(audio, prompt=self.prompt, max_new_tokens=self.max_new_tokens).text


def load(options: BackendOptions) -> Recogniser:
    model = Phi4MM.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    return Phi4MMRecogniser(model, options)

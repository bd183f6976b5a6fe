"""CMU PocketSphinx with its own English model: a small recogniser of the old school."""

from __future__ import annotations

import numpy as np
import pocketsphinx

from eval_asr.backends import BackendOptions, Recogniser, one_by_one
from eval_asr.errors import BackendError


class PocketSphinxRecogniser(Recogniser):
    """One clip at a time."""

    sampling_rate = 16000

    def __init__(self, options: BackendOptions) -> None:
        self.name = options.label
        self.decoder = pocketsphinx.Decoder(samprate=self.sampling_rate, loglevel="FATAL")

    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str | Exception]:
        if language != "en":
            raise BackendError(f"backend 'pocketsphinx' is for English, and a set is in {language!r}; leave it out")
        return one_by_one(self._one, clips)

    def _one(self, clip: np.ndarray) -> str:
        samples = (np.clip(clip, -1.0, 1.0) * 32767).astype(np.int16)
        self.decoder.reinit_feat()  # forget the levels and noise of the clips before: the order must not matter
        self.decoder.start_utt()
        try:
            self.decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        finally:
            self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return "" if hypothesis is None else str(hypothesis.hypstr)


def load(options: BackendOptions) -> Recogniser:
    given = {"--model": options.model, "--prompt": options.prompt}
    for flag, value in given.items():
        if value is not None:
            raise BackendError(f"backend 'pocketsphinx' takes no {flag}; leave it out")
    if options.device not in ("auto", "cpu") or options.dtype != "auto":
        raise BackendError("backend 'pocketsphinx' runs on a CPU; leave out --device, --dtype")
    return PocketSphinxRecogniser(options)

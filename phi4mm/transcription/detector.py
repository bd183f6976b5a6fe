"""Where there is speech: Silero VAD (github.com/snakers4/silero-vad), run block by block with onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime

from phi4mm.errors import Phi4MMError

SAMPLING_RATE = 16000
FRAME = 512  # samples that get one probability: 32 ms
FRAME_SECONDS = FRAME / SAMPLING_RATE
_CONTEXT = 64  # samples before a frame that the network takes too
_STATE = (1, 1, 128)
_MODEL = "silero_vad_16k_sequence.onnx"


class SpeechDetector:
    """The probability of speech in each frame of one audio stream, as it comes.

    Half a second of silence is put before it, so that speech which begins with the stream is found from its start.
    """

    def __init__(self) -> None:
        self._session = _session()
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._samples = np.zeros(_CONTEXT, np.float32)  # those not yet used, after the context of the next frame
        self.push(np.zeros(16 * FRAME, np.float32))

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take the stream's next samples (float32 [n], 16 kHz); the probabilities of the frames that are now whole."""
        self._samples = np.concatenate((self._samples, samples))
        num_frames = (len(self._samples) - _CONTEXT) // FRAME
        if num_frames == 0:
            return np.zeros(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._samples, _CONTEXT + FRAME)[::FRAME]
        inputs = {"input": np.ascontiguousarray(windows), "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
        self._samples = self._samples[num_frames * FRAME :]
        return np.asarray(probabilities).reshape(-1)

    def finish(self) -> Iterator[float]:
        """The probabilities of the frames that are left, the last one filled with silence, and of half a second more.

        A last word is often recognised as speech only by the silence after it.
        """
        yield from self.push(np.zeros(17 * FRAME, np.float32))


@lru_cache(maxsize=1)
def _session() -> onnxruntime.InferenceSession:
    """The network; it keeps no state between calls."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(_model_file(), options, providers=["CPUExecutionProvider"])


def _model_file() -> str:
    """The network's file in the silero-vad package, which is not imported: that would set torch's thread count."""
    package = importlib.util.find_spec("silero_vad")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "data" / _MODEL
        if file.is_file():
            return str(file)
    raise Phi4MMError("speech detection needs silero-vad 6.2.3 or newer: pip install -U silero-vad, or pass vad=False")

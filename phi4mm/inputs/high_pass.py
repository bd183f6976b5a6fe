"""Audio without a constant offset, mains hum and rumble: what is measured is then the speech."""

from __future__ import annotations

import numpy as np

CUTOFF = 100.0  # Hz, half the power; a voice's fundamental may lie below, its harmonics do not
ORDER = 8  # 48 dB an octave: 50 Hz, and its offset from 60 Hz mains by 35 dB, are gone


class HighPass:
    """A Butterworth filter (scipy.signal) over one stream, part by part.

    Before its first sample the stream counts as constant, so that an offset gives no transient.

    Args:
        sampling_rate: in Hz.
    """

    def __init__(self, sampling_rate: int) -> None:
        import scipy.signal  # which audio that is not transcribed does without

        self._filter = scipy.signal.sosfilt
        self._sections = scipy.signal.butter(ORDER, CUTOFF, "highpass", fs=sampling_rate, output="sos")
        self._settled = scipy.signal.sosfilt_zi(self._sections)
        self._state: np.ndarray | None = None

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The stream's next samples [n] or [n, channels], filtered: float64 of the same shape."""
        if not len(samples):
            return samples.astype(np.float64)
        if self._state is None:
            self._state = np.multiply.outer(self._settled, samples[0].astype(np.float64))
        filtered, self._state = self._filter(self._sections, samples.astype(np.float64), axis=0, zi=self._state)
        return filtered

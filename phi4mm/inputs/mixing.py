"""Channels -> one, without the loss of speech that one channel holds with its sign inverted.

Ordinary audio is the mean of its channels. Where a cable or a microphone inverts a side, that mean is silence. So for
each quarter of a second it is compared with the channels, above 100 Hz (what cancels may be speech while a hum, which
all share, does not): where it is far weaker than even channels without a relation would give, channels that are
inverted against the first are turned over before the mean is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from phi4mm.inputs.high_pass import HighPass

STEPS_PER_SECOND = 4  # so often the signs are chosen
RAMP_SECONDS = 0.01  # in which they change
# The power of the channels' sum beside that of unrelated channels: 0 where they cancel, 1 where they have no relation,
# as many as there are channels where they are equal. Between the two bounds the signs stay.
CANCELLED = 0.1
KEPT = 0.5


def mixed(blocks: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of samples [n, channels] and their rate in Hz, which may change on the way, to samples [n] and rate.

    What comes out does not depend on how the audio is cut into blocks. A single channel stays as it is; of several the
    mean is taken in float64, and up to a quarter of a second is held back.
    """
    mixer: _Mixer | None = None
    for block, rate in blocks:
        if mixer is not None and (rate, block.shape[1]) != (mixer.sampling_rate, mixer.num_channels):
            yield mixer.finish(), mixer.sampling_rate
            mixer = None
        if block.shape[1] == 1:
            yield block[:, 0], rate
            continue
        mixer = mixer or _Mixer(rate, block.shape[1])
        yield mixer.push(block), rate
    if mixer is not None:
        yield mixer.finish(), mixer.sampling_rate


class _Mixer:
    """The mean of the channels of one stream."""

    def __init__(self, sampling_rate: int, num_channels: int) -> None:
        self.sampling_rate = sampling_rate
        self.num_channels = num_channels
        self._step = -(-sampling_rate // STEPS_PER_SECOND)
        self._ramp = max(round(RAMP_SECONDS * sampling_rate), 1)
        self._high_pass = HighPass(sampling_rate)
        self._pending: list[np.ndarray] = []  # less than a step
        self._signs: np.ndarray | None = None

    def push(self, block: np.ndarray) -> np.ndarray:
        """The stream's next samples [n, channels]; the mean of all whole steps."""
        length = sum(map(len, self._pending)) + len(block)
        if length < self._step:
            self._pending.append(block)
            return np.zeros(0)
        samples = np.concatenate((*self._pending, block)) if self._pending else block
        whole = length - length % self._step
        self._pending = [samples[whole:]]
        return np.concatenate(
            [self._mean(samples[start : start + self._step]) for start in range(0, whole, self._step)]
        )

    def finish(self) -> np.ndarray:
        """The mean of what is left."""
        rest = np.concatenate(self._pending) if self._pending else np.zeros((0, self.num_channels))
        return self._mean(rest) if len(rest) else np.zeros(0)

    def _mean(self, samples: np.ndarray) -> np.ndarray:
        before, self._signs = self._signs, self._chosen(samples)
        if before is None or np.array_equal(before, self._signs):
            return _mean(samples, self._signs)
        mean = _mean(samples, self._signs)
        start = _mean(samples[: self._ramp], before)
        mean[: len(start)] += np.linspace(1, 0, len(start), endpoint=False) * (start - mean[: len(start)])
        return mean

    def _chosen(self, samples: np.ndarray) -> np.ndarray:
        """The sign of each channel in this step; the first one's is kept."""
        unchanged = np.ones(self.num_channels)
        if np.array_equal(samples[:, 1:], np.broadcast_to(samples[:, :1], samples[:, 1:].shape)):
            self._high_pass.push(samples)
            return unchanged
        with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are refused later
            filtered = self._high_pass.push(samples)
            covariance = filtered.T @ filtered
            together, unrelated = float(covariance.sum()), float(np.trace(covariance))
        if together < CANCELLED * unrelated:
            strongest = int(np.argmax(np.diag(covariance)))
            signs = np.where(covariance[strongest] < 0, -1.0, 1.0)
            return signs * signs[0]
        return unchanged if self._signs is None or together > KEPT * unrelated else self._signs


def _mean(samples: np.ndarray, signs: np.ndarray) -> np.ndarray:
    if (signs > 0).all():
        return samples.mean(axis=1, dtype=np.float64)
    return samples.astype(np.float64) @ signs / len(signs)

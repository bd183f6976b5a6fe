"""Audio without a constant offset, mains hum and rumble: what is measured is then the speech."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.filter import Graph

CUTOFF = 100.0  # Hz, half the power; a voice's fundamental may lie below, its harmonics do not
_MOST_AT_ONCE = 1 << 20  # samples of a frame: FFmpeg counts bytes in 31 bits
ORDER = 8  # 48 dB an octave: 50 Hz, and its offset from 60 Hz mains by 35 dB, are gone


class HighPass:
    """A Butterworth filter (FFmpeg's highpass, a biquad for each pair of poles) over one stream, part by part.

    Before its first sample the stream counts as constant, so that an offset gives no transient.

    Args:
        sampling_rate: in Hz.
    """

    def __init__(self, sampling_rate: int) -> None:
        self._sampling_rate = sampling_rate
        self._graphs: list[Graph] = []  # of each channel
        self._first = np.zeros(0)  # sample of each channel

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The stream's next samples [n] or [n, channels], filtered: float64 of the same shape."""
        if not len(samples):
            return samples.astype(np.float64)
        channels = samples.reshape(len(samples), -1).T.astype(np.float64)
        if not self._graphs:
            self._graphs = [_graph(self._sampling_rate) for _ in channels]
            self._first = channels[:, :1].copy()
        filtered = [
            _filtered(graph, channel, self._sampling_rate)
            for graph, channel in zip(self._graphs, channels - self._first, strict=True)
        ]
        return np.stack(filtered, axis=-1).reshape(samples.shape)


def _graph(sampling_rate: int) -> Graph:
    from av.filter import Graph

    graph = Graph()
    nodes = [
        graph.add_abuffer(format="dbl", sample_rate=sampling_rate, layout="mono", time_base=Fraction(1, sampling_rate))
    ]
    for pair in range(ORDER // 2):
        quality = 1 / (2 * math.cos(math.pi * (2 * pair + 1) / (2 * ORDER)))
        nodes.append(graph.add("highpass", f"frequency={CUTOFF}:width_type=q:width={quality!r}:precision=f64"))
    nodes.append(graph.add("abuffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


def _filtered(graph: Graph, samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    from av import AudioFrame

    parts = []
    for start in range(0, len(samples), _MOST_AT_ONCE):
        part = np.ascontiguousarray(samples[None, start : start + _MOST_AT_ONCE])
        frame = AudioFrame.from_ndarray(part, format="dbl", layout="mono")
        frame.sample_rate = sampling_rate
        graph.push(frame)
        result = graph.pull()
        assert isinstance(result, AudioFrame)
        parts.append(result.to_ndarray()[0])
    return np.concatenate(parts)

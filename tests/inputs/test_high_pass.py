"""The high-pass filter is scipy's Butterworth filter, whatever the parts of the stream."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from phi4mm.inputs import high_pass
from phi4mm.inputs.high_pass import CUTOFF, ORDER, HighPass


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("shape", [(5001,), (5001, 1), (5001, 6)])
def test_of_a_stream_in_parts(rate: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(high_pass, "_MOST_AT_ONCE", 1000)
    samples = (0.3 + 0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    sections = scipy.signal.butter(ORDER, CUTOFF, "highpass", fs=rate, output="sos")
    settled = np.multiply.outer(scipy.signal.sosfilt_zi(sections), samples[0].astype(np.float64))
    expected, _ = scipy.signal.sosfilt(sections, samples.astype(np.float64), axis=0, zi=settled)
    filter = HighPass(rate)
    parts = [filter.push(part) for part in (samples[:1], samples[1:777], samples[777:777], samples[777:])]
    filtered = np.concatenate(parts)
    assert filtered.dtype == np.float64
    assert filtered.shape == shape
    np.testing.assert_allclose(filtered, expected, atol=1e-12)

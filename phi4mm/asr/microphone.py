"""What is spoken into the microphone, as it comes (sounddevice: ``pip install 'phi4mm[mic]'``)."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from phi4mm.errors import AudioError
from phi4mm.inputs.audio import SAMPLING_RATE

BLOCK = SAMPLING_RATE // 10


def microphone() -> Iterator[tuple[np.ndarray, int]]:
    """Tenths of a second from the default microphone, as (samples, sampling rate), until Ctrl-C.

    Raises:
        AudioError: sounddevice is not installed, or there is no microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: its PortAudio library is missing
        raise AudioError(f"microphone: sounddevice is not available ({error}); pip install 'phi4mm[mic]'") from error
    recorded: SimpleQueue[np.ndarray] = SimpleQueue()

    def record(samples: np.ndarray, num_frames: int, time: Any, status: Any) -> None:
        recorded.put(samples[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            samplerate=SAMPLING_RATE, blocksize=BLOCK, channels=1, dtype="float32", callback=record
        )
    except sounddevice.PortAudioError as error:
        raise AudioError(f"microphone: cannot be opened ({error}); check that one is connected") from error
    with stream:
        while True:
            try:
                samples = recorded.get()
            except KeyboardInterrupt:
                return
            yield samples, SAMPLING_RATE

"""What is spoken into the microphone, as it comes (sounddevice, of the group ``mic``)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np

from phi4mm.errors import AudioError, install_hint
from phi4mm.inputs.audio import SAMPLING_RATE

BLOCK = SAMPLING_RATE // 10


def sound_library() -> Any:
    """The module sounddevice.

    Raises:
        AudioError: it, or the library PortAudio, is not installed.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise AudioError(f"microphone: sounddevice is not available ({error}); {install_hint('mic')}") from error
    except OSError as error:
        raise AudioError(
            f"microphone: the library PortAudio is not available ({error}); install it: apt install libportaudio2, dnf "
            "install portaudio, brew install portaudio"
        ) from error
    return sounddevice


def microphone() -> Iterator[tuple[np.ndarray, int]]:
    """Tenths of a second from the default microphone, as (samples, sampling rate), until Ctrl-C.

    Raises:
        AudioError: sounddevice or PortAudio is not installed, or there is no microphone.
    """
    sounddevice = sound_library()
    recorded: SimpleQueue[np.ndarray | None] = SimpleQueue()

    def record(samples: np.ndarray, num_frames: int, time: Any, status: Any) -> None:
        recorded.put(samples[:, 0].copy())

    try:
        stream = sounddevice.InputStream(
            samplerate=SAMPLING_RATE, blocksize=BLOCK, channels=1, dtype="float32", callback=record
        )
    except sounddevice.PortAudioError as error:
        raise AudioError(f"microphone: cannot be opened ({error}); check that one is connected") from error
    with stream, _on_ctrl_c(lambda: recorded.put(None)):
        while (samples := recorded.get()) is not None:
            yield samples, SAMPLING_RATE


@contextmanager
def _on_ctrl_c(function: Callable[[], None]) -> Iterator[None]:
    """What the first Ctrl-C does, instead of interrupting; the next one interrupts."""

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        function()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

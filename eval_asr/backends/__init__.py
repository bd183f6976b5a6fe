"""Recognisers behind one small interface, so that peers run under the same clock."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from eval_asr.errors import BackendError
from phi4mm.errors import install_hint

DEFAULT_PROMPT = "Transcribe the audio clip into text."


class Recogniser(ABC):
    """What turns a batch of clips into texts.

    Attributes:
        name: for messages.
        sampling_rate: of the samples that it wants, in Hz.
    """

    name: str
    sampling_rate: int

    @abstractmethod
    def transcribe(self, clips: list[np.ndarray], language: str) -> Sequence[str | Exception]:
        """The text of each clip, in order, or why it alone has none.

        Args:
            clips: float32 samples [n] in [-1, 1] at ``sampling_rate``.
            language: of the speech, as a two-letter code, for the models that take one.

        Raises:
            BackendError: it does not take this language.
            Exception: any other; the clips are then handed over one by one.
        """

    def close(self) -> None:  # noqa: B027
        """Free what it holds, at the end of a run; by default nothing."""


@dataclass(frozen=True)
class BackendOptions:
    """Which recogniser, and how it runs.

    Attributes:
        backend: one of ``BACKENDS``.
        model: a folder or name; ``None`` for the backend's own default, where it has one.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "bfloat16" or "float16".
        prompt: the instruction, for the models that take one.
        max_new_tokens: the most tokens of a transcription, for the models that count them.
    """

    backend: str = "phi4mm"
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    prompt: str | None = None
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise BackendError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")

    @property
    def label(self) -> str:
        """What results call the model: its name, or its folder's; after the backend's where it is not ours."""
        default = {"phi4mm": "bundled", "pocketsphinx": "en-us"}.get(self.backend, "")
        name = default if self.model is None else self.model
        if self.model is not None and Path(self.model).is_dir():
            name = os.path.basename(os.path.abspath(self.model))  # of a link: the link's
        return name if self.backend == "phi4mm" and self.model is not None else f"{self.backend}-{name}"


# Each module has ``load(options) -> Recogniser``; it is imported only when it is asked for.
BACKENDS = {
    "phi4mm": "eval_asr.backends.phi4mm",
    "transformers": "eval_asr.backends.transformers",
    "faster-whisper": "eval_asr.backends.faster_whisper",
    "pocketsphinx": "eval_asr.backends.pocketsphinx",
}


def one_by_one(transcribe: Callable[[np.ndarray], str], clips: Iterable[np.ndarray]) -> list[str | Exception]:
    """The texts of clips, each by itself; of one that fails, why."""

    def text_or_error(clip: np.ndarray) -> str | Exception:
        try:
            return transcribe(clip)
        except Exception as error:  # of whatever kind: it is that clip's alone
            return error

    return [text_or_error(clip) for clip in clips]


def load_recogniser(options: BackendOptions) -> Recogniser:
    """The recogniser that the options name.

    Raises:
        BackendError: it is not known, not installed, or its model cannot be loaded.
        Phi4MMError: likewise, raised by phi4mm.
    """
    if options.backend not in BACKENDS:
        raise BackendError(f"backend {options.backend!r} is not known; known are {', '.join(BACKENDS)}")
    try:
        module = import_module(BACKENDS[options.backend])
    except ImportError as error:
        raise BackendError(
            f"backend {options.backend!r} needs {error.name}, which is not installed; {install_hint('eval')}"
        ) from error
    load: Callable[[BackendOptions], Recogniser] = module.load
    return load(options)

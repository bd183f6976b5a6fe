"""The errors that a user can meet. Each says what was wrong with which input, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Phi4MMError(ValueError):
    """Base of every error that phi4mm raises for a bad input, request or checkpoint."""


class AudioError(Phi4MMError):
    """An audio input cannot be read or used."""


class AudioReadError(AudioError):
    """Reading a file failed (an input/output error), whatever it holds: it may be read another time."""


class ImageError(Phi4MMError):
    """An image input cannot be read or used."""


class PromptError(Phi4MMError):
    """A request's text, history, tools, options or placeholders are wrong."""


class CheckpointError(Phi4MMError):
    """A checkpoint folder, its configuration or one of its tensors is wrong."""


class AdapterError(Phi4MMError):
    """An adapter cannot be loaded, unloaded or used."""


class ClosedError(Phi4MMError):
    """The model was closed before the request was answered."""


_SHOWN = 5  # errors of a batch that its message tells


class BatchError(Phi4MMError):
    """Some rows of a batch failed; the others were answered.

    Attributes:
        results: one entry per request, in order: the result, or ``None`` where the request failed.
        errors: request index -> the error of that request.
    """

    def __init__(self, results: Sequence[Any], errors: Mapping[int, Phi4MMError]) -> None:
        self.results = list(results)
        self.errors = dict(errors)
        lines = [f"request {index}: {error}" for index, error in sorted(self.errors.items())[:_SHOWN]]
        if len(self.errors) > _SHOWN:
            lines.append(f"and {len(self.errors) - _SHOWN} more: see .errors")
        good = len(self.results) - len(self.errors)
        super().__init__("; ".join(lines) + f" ({good} of {len(self.results)} requests were answered: see .results)")

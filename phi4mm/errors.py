"""The errors that a user can meet. Each says what was wrong with which input, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST = 1000  # characters of a message; of one that quotes a longer input, the middle is left out


class Phi4MMError(ValueError):
    """Base of every error that phi4mm raises for a bad input, request or checkpoint. Its message is short, however
    long the input that it quotes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(shortened(each, _LONGEST) if isinstance(each, str) else each for each in args))


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


def install_hint(extra: str) -> str:
    """How a group of optional libraries of ``pyproject.toml`` is installed: phi4mm is on no package registry."""
    return f"pip install '.[{extra}]' (in a clone of phi4mm's repository)"


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
        shown = sorted(self.errors.items())[:_SHOWN]
        lines = [f"request {index}: {shortened(str(error), _LONGEST // 4)}" for index, error in shown]
        if len(self.errors) > _SHOWN:
            lines.append(f"and {len(self.errors) - _SHOWN} more: see .errors")
        good = len(self.results) - len(self.errors)
        Exception.__init__(  # each of the errors is short
            self, "; ".join(lines) + f" ({good} of {len(self.results)} requests were answered: see .results)"
        )


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters: of a longer one, the middle is left out."""
    if len(text) <= most:
        return text
    end = (most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"

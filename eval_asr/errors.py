"""The errors that a user of the harness can meet. Each is one line: what was wrong with what, and what to do."""

from __future__ import annotations

from phi4mm.errors import Phi4MMError


def short(text: str, limit: int = 200) -> str:
    """A text for a message: all of it, or its beginning."""
    return text if len(text) <= limit else f"{text[:limit]}..."


class EvalError(Phi4MMError):
    """Base of every error that the harness raises."""


class SourceError(EvalError):
    """A corpus cannot be read, or one of its lines is wrong."""


class ResultsError(EvalError):
    """A folder of results cannot be read, written, or gone on with."""


class BackendError(EvalError):
    """A recogniser cannot be loaded."""


class ScoringError(EvalError):
    """Results cannot be scored by the rules asked for."""


class ScoringWarning(UserWarning):
    """Results can be scored, but something is missing from them."""

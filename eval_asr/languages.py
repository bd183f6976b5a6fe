"""Languages by their two-letter codes."""

from __future__ import annotations

import re

from eval_asr.errors import EvalError


def language_code(language: str) -> str:
    """A language as a two-letter code: "EN" and "en-GB" are "en".

    Raises:
        EvalError: it is not a code.
    """
    found = re.fullmatch(r"([a-z]{2})(?:[-_][a-z0-9]+)*", language.strip().lower())
    if found is None:
        raise EvalError(f"--language is {language[:60]!r}; expected a two-letter code such as en, de or zh")
    return found[1]

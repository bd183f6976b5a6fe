"""Checks of options: each raises a ``PromptError`` that names the option, its value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from phi4mm.errors import PromptError


def wrong(name: str, value: Any, expected: str) -> PromptError:
    """The error of an option whose value is not what was expected."""
    return PromptError(f"{name} is {' '.join(repr(value).split()):.80}; expected {expected}")


def is_whole(value: Any) -> bool:
    """Whether a value is an int; ``True`` and ``False`` are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Names of options that are all known."""
    if unknown := [name for name in names if name not in known]:
        raise PromptError(f"unknown options {', '.join(unknown)}; known are {', '.join(known)}")


def check_whole(name: str, value: Any, least: int, most: int | None = None, *, or_none: bool = False) -> None:
    """A whole number from ``least`` to ``most``, or, if allowed, ``None``."""
    if or_none and value is None:
        return
    if not is_whole(value) or value < least or (most is not None and value > most):
        expected = f"a whole number, {least} or more" if most is None else f"a whole number, {least} to {most}"
        raise wrong(name, value, expected + ", or None" * or_none)


def check_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_below: bool = False,
    open_above: bool = False,
    or_none: bool = False,
) -> None:
    """A finite number from ``low`` to ``high``, without a bound that is open, or, if allowed, ``None``."""
    if or_none and value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if not is_number or not low <= value <= high or (open_below and value == low) or (open_above and value == high):
        raise wrong(name, value, _interval(low, high, open_below, open_above) + ", or None" * or_none)


def check_bool(name: str, value: Any) -> None:
    """``True`` or ``False``."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """One of some strings."""
    if not isinstance(value, str) or value not in choices:
        raise wrong(name, value, f"one of {', '.join(choices)}")


def check_text(name: str, value: Any, *, or_none: bool = False) -> None:
    """A string that is not blank, or, if allowed, ``None``."""
    if or_none and value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise wrong(name, value, "a string that is not blank" + ", or None" * or_none)


def check_sequence(name: str, value: Any, of: str) -> None:
    """A list or another sequence, but not a string."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise wrong(name, value, f"a list of {of}")


def check_strings(name: str, value: Any, of: str = "strings") -> None:
    """A list of strings that are not empty."""
    check_sequence(name, value, of)
    if not all(isinstance(item, str) and item for item in value):
        raise wrong(name, value, f"a list of {of}, none of them empty")


def _interval(low: float, high: float, open_below: bool, open_above: bool) -> str:
    if low > -math.inf and high < math.inf:
        return f"a number, {'over ' if open_below else ''}{low:g} to {'under ' if open_above else ''}{high:g}"
    if low > -math.inf:
        return f"a number, over {low:g}" if open_below else f"a number, {low:g} or more"
    return "a finite number"

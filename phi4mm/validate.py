"""Checks of options: each raises a ``PromptError`` that names the option, its value and what was expected.

Numbers of numpy and other libraries are taken as Python's own (``plain``).
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

from phi4mm.errors import PromptError, shortened

_SHOWN = 80  # characters of a value that an error quotes
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN


def shown(value: Any) -> str:
    """A value as an error quotes it: in one line, and cut. It costs little, however large the value is."""
    try:
        text = _REPR.repr(value)
    except Exception:  # of the value's own repr, or of an int of over 4300 digits
        text = f"<{type(value).__name__}>"
    return shortened(" ".join(text.split()), _SHOWN)


def wrong(name: str, value: Any, expected: str) -> PromptError:
    """The error of an option whose value is not what was expected."""
    return PromptError(f"{name} is {shown(value)}; expected {expected}")


def plain(value: Any) -> Any:
    """A number of another library (``numpy.int64``, ``numpy.float32``) as an int or float; all else as it is."""
    if type(value) in (int, float, bool, str) or not isinstance(value, numbers.Real):
        return value
    try:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    except OverflowError:  # which the option's check refuses
        return value


def make_plain(options: Any) -> None:
    """``plain`` for each field of a frozen dataclass that is being made."""
    for field in fields(options):
        object.__setattr__(options, field.name, plain(getattr(options, field.name)))


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; ``True`` and ``False`` are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_known(names: Iterable[str], known: Collection[str]) -> None:
    """Names of options that are all known."""
    if unknown := [name for name in names if name not in known]:
        raise PromptError(f"unknown options {', '.join(map(shorter, unknown))}; known are {', '.join(known)}")


def shorter(name: object) -> str:
    """The name of an option that is not known, as an error quotes it."""
    return shortened(str(name), _SHOWN)


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
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if not is_number or not low <= value <= high or (open_below and value == low) or (open_above and value == high):
        raise wrong(name, value, _interval(low, high, open_below, open_above) + ", or None" * or_none)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def check_bool(name: str, value: Any) -> None:
    """``True`` or ``False``."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Collection[str], *, or_none: bool = False) -> None:
    """One of some strings, or, if allowed, ``None``."""
    if or_none and value is None:
        return
    if not isinstance(value, str) or value not in choices:
        raise wrong(name, value, f"one of {', '.join(choices)}" + ", or None" * or_none)


def check_text(name: str, value: Any, *, or_none: bool = False) -> None:
    """A string that is not blank, or, if allowed, ``None``."""
    if or_none and value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise wrong(name, value, "a string that is not blank" + ", or None" * or_none)


def check_sequence(name: str, value: Any, of: str, *, most: int | None = None) -> None:
    """A list or another sequence of at most ``most`` items, but not a string."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise wrong(name, value, f"a list of {of}")
    if most is not None and len(value) > most:
        raise PromptError(f"{name} has {len(value)} items; expected at most {most}")


def check_strings(
    name: str, value: Any, of: str = "strings", *, most: int | None = None, longest: int | None = None
) -> None:
    """A list of at most ``most`` strings of 1 to ``longest`` characters."""
    check_sequence(name, value, of, most=most)
    if not all(isinstance(item, str) and item for item in value):
        raise wrong(name, value, f"a list of {of}, none of them empty")
    if longest is not None and max(map(len, value), default=0) > longest:
        raise wrong(name, max(value, key=len), f"{of} of at most {longest} characters")


def check_path(name: str, value: Any, *, or_none: bool = False) -> None:
    """A string or ``os.PathLike`` that may be the path of a file or folder, there or not; or, if allowed, ``None``."""
    if or_none and value is None:
        return
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    expected = "a path" + ", or None" * or_none
    if not isinstance(path, str) or not path:
        raise wrong(name, value, expected)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:  # too long, or with a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise PromptError(
            f"{name} is {shown(value)}, which cannot be a path ({reason}); expected {expected}"
        ) from error


def _interval(low: float, high: float, open_below: bool, open_above: bool) -> str:
    if low > -math.inf and high < math.inf:
        return f"a number, {'over ' if open_below else ''}{low:g} to {'under ' if open_above else ''}{high:g}"
    if low > -math.inf:
        return f"a number, over {low:g}" if open_below else f"a number, {low:g} or more"
    return "a finite number"

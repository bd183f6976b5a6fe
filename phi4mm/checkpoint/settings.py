"""One JSON object of a checkpoint's configuration, read with checks that name the file and the key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from phi4mm.errors import CheckpointError


class Settings:
    """A JSON object and what to call it in messages. A key that holds ``null`` counts as absent.

    Args:
        values: the object.
        name: file, and section in it.
    """

    def __init__(self, values: dict[str, Any], name: str) -> None:
        self.name = name
        self._values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def section(self, key: str) -> Settings:
        """The object under ``key``; empty where absent."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Settings(value, f"{self.name}: {key}")

    def require(self, *keys: str) -> None:
        """Refuse an object that lacks any of ``keys``, naming all that it lacks."""
        missing = [key for key in keys if key not in self]
        if missing:
            raise CheckpointError(
                f"{self.name}: required keys are missing: {', '.join(missing)}; use the configuration that belongs to "
                "the weights"
            )

    def expect(self, key: str, *accepted: object) -> None:
        """Refuse a value that would change the mathematics; an absent key is accepted."""
        if key in self and self._values[key] not in accepted:
            raise CheckpointError(
                f"{self.name}: {key} is {self._values[key]!r}, but only "
                f"{' or '.join(repr(value) for value in accepted)} is supported"
            )

    def expect_each(self, accepted: dict[str, tuple[object, ...]]) -> None:
        for key, values in accepted.items():
            self.expect(key, *values)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._values.get(key, default)
        if type(value) is not int or value < least:
            raise self.error(key, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None, *, least: float | None = None) -> float:
        """A number of at least ``least``, or a positive one."""
        value: Any = self._values.get(key, default)
        if type(value) not in (int, float) or not (value > 0 if least is None else value >= least):
            raise self.error(key, "a positive number" if least is None else f"a number of at least {least:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        values = self._values.get(key)
        if not isinstance(values, list) or not all(type(v) in (int, float) and v > 0 for v in values):
            raise self.error(key, "a list of positive numbers")
        return tuple(float(value) for value in values)

    def ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; nothing where absent."""
        values = self._values.get(key, [])
        values = values if isinstance(values, list) else [values]
        if not all(type(value) is int and value >= 0 for value in values):
            raise self.error(key, "a token id or a list of them")
        return tuple(values)

    def error(self, key: str, expected: str) -> CheckpointError:
        value = repr(self._values.get(key))[:80]
        return CheckpointError(f"{self.name}: {key} is {value}, expected {expected}; correct it or download it again")


def distinct(values: Iterable[int]) -> tuple[int, ...]:
    """Without repetitions, in order."""
    return tuple(dict.fromkeys(values))

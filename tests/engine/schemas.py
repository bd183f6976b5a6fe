"""Random JSON schemas that llguidance supports, bounded so that random tokens fill them soon."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
PATTERNS = ("^[a-c]{1,4}$", "^(ja|nein|é+)$", r"^\d{2}:\d{2}$", "^x*$", "[A-Z]", r"^\w+\s$", '^[^/"]{0,3}$')
WORDS = ("", "a", "key", 'q"uote', "b\\c", "ü", "日本", "line\nfeed", "</script>", "<|end|>", "😀")


def random_schema(random: Random, depth: int = 3) -> Any:
    """A schema with at most ``depth`` levels of arrays and objects."""
    simple = (_string, _integer, _number, _constants, _kinds)
    nested = (_array, _tuple, _object, _object, _union, _both, _reference)
    make = random.choice((*simple, *nested) if depth else simple)
    return make(random, depth)


def _string(random: Random, depth: int) -> Any:
    least = random.randrange(4)
    return random.choice(
        (
            {"type": "string", "maxLength": random.randrange(6)},
            {"type": "string", "minLength": least, "maxLength": least + random.randrange(4)},
            {"type": "string", "pattern": random.choice(PATTERNS), "maxLength": 12},
            {"type": "string", "format": random.choice(FORMATS)},
            {"type": "string"},
        )
    )


def _integer(random: Random, depth: int) -> Any:
    low = random.randrange(-1200, 1200)
    return {"type": "integer"} | random.choice(
        (
            {"minimum": low, "maximum": low + random.randrange(2000)},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + random.randrange(20)},
            {"minimum": low},
            {"multipleOf": random.choice((2, 3, 7, 10, 25)), "minimum": 0, "maximum": 300},
            {},
        )
    )


def _number(random: Random, depth: int) -> Any:
    low = random.choice((-3.5, -0.25, 0, 0.001, 12.75, 1000))
    return {"type": "number"} | random.choice(
        ({"minimum": low, "maximum": low + random.choice((0.5, 3, 1000.25))}, {"exclusiveMinimum": low}, {})
    )


def _constants(random: Random, depth: int) -> Any:
    values = [None, True, 0, -1.5, [1, "a"], {"a": {}}, *WORDS]
    return random.choice(({"enum": random.sample(values, random.randrange(1, 5))}, {"const": random.choice(values)}))


def _kinds(random: Random, depth: int) -> Any:
    return {"type": random.sample(("null", "boolean", "integer", "string"), random.randrange(1, 4))}


def _array(random: Random, depth: int) -> Any:
    least = random.randrange(3)
    return {
        "type": "array",
        "items": random_schema(random, depth - 1),
        "minItems": least,
        "maxItems": least + random.randrange(3),
    }


def _tuple(random: Random, depth: int) -> Any:
    first = [random_schema(random, depth - 1) for _ in range(random.randrange(1, 4))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": random.randrange(len(first) + 1)}


def _object(random: Random, depth: int) -> Any:
    names = random.sample(WORDS, random.randrange(5))
    schema: dict[str, Any] = {
        "type": "object",
        "title": "T",
        "properties": {name: random_schema(random, depth - 1) for name in names},
        "required": _some(random, names),
        "additionalProperties": random.choice((False, False, random_schema(random, 0))),
    }
    if random.random() < 0.2:
        schema["patternProperties"] = {"^x_[a-z]$": random_schema(random, 0)}
    return schema


def _union(random: Random, depth: int) -> Any:
    return {"anyOf": [random_schema(random, depth - 1) for _ in range(random.randrange(1, 4))]}


def _both(random: Random, depth: int) -> Any:
    names = random.sample(WORDS, 2)
    parts = [{"type": "object", "properties": {name: random_schema(random, depth - 1)}} for name in names]
    return {"allOf": [*parts, {"type": "object", "required": _some(random, names)}]}


def _reference(random: Random, depth: int) -> Any:
    """A list of any length, as a recursive definition."""
    return {
        "type": "object",
        "properties": {"value": random_schema(random, 0), "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }


def _some(random: Random, names: Sequence[str]) -> list[str]:
    return [name for name in names if random.random() < 0.6]

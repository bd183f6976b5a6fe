"""What the text of a reply must be: JSON that fits a schema, or a string of a regular expression or grammar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from phi4mm.errors import PromptError
from phi4mm.validate import check_bool, check_text, wrong

# Keywords of JSON schema whose values hold schemas: one, a list of them, or a mapping of names to them.
_ONE = ("items", "additionalItems", "additionalProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")


@dataclass(frozen=True)
class OutputFormat:
    """What the text of a reply must be; exactly one of these is given.

    Attributes:
        json_schema: a JSON schema (https://json-schema.org) that the text fits; ``True``: any JSON.
        json_object: any JSON object.
        regex: a regular expression (of Rust's ``regex`` crate, without look-around) that the whole text matches.
        lark: a context-free grammar in llguidance's form of Lark, with the rule ``start``.

    Raises:
        PromptError: none or several are given, or one has the wrong type.
    """

    json_schema: Mapping[str, Any] | bool | None = None
    json_object: bool = False
    regex: str | None = None
    lark: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.json_schema, Mapping | bool | None):
            raise wrong("json_schema", self.json_schema, "a JSON schema: a mapping, True or False")
        check_bool("json_object", self.json_object)
        check_text("regex", self.regex, or_none=True)
        check_text("lark", self.lark, or_none=True)
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, field.default)]
        if len(given) != 1:
            raise PromptError(
                f"an output format has {' and '.join(given) or 'nothing'}; "
                "expected one of json_schema, json_object, regex and lark"
            )

    @classmethod
    def of(
        cls, response_format: Any = None, regex: str | None = None, grammar: str | None = None
    ) -> OutputFormat | None:
        """From the options of ``Phi4MM.chat``; ``None`` where none of them asks for anything.

        Args:
            response_format: a JSON schema, a Pydantic model class, or OpenAI's form: ``{"type": "json_schema",
                "json_schema": {"name": ..., "schema": {...}}}``, ``{"type": "json_object"}`` or ``{"type": "text"}``.
            regex: a regular expression.
            grammar: a grammar in llguidance's form of Lark.

        Raises:
            PromptError: several are given, or one has the wrong type.
        """
        given: dict[str, Any] = {"regex": regex, "lark": grammar}
        if isinstance(response_format, Mapping):
            kind = response_format.get("type")
            if kind == "json_schema":
                inner = response_format.get("json_schema")
                if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping | bool):
                    raise wrong("response_format", response_format, 'json_schema: {"name": ..., "schema": {...}}')
                given["json_schema"] = inner["schema"]
            elif kind == "json_object":
                given["json_object"] = True
            elif kind != "text":
                given["json_schema"] = response_format
        elif _makes_schema(response_format):
            try:
                given["json_schema"] = _closed(response_format.model_json_schema())
            except Exception as error:  # Pydantic's, which is not imported here
                reason = str(error).splitlines()[0]
                raise PromptError(f"response_format {response_format.__name__} has no JSON schema: {reason}") from error
        elif response_format is not None:
            raise wrong("response_format", response_format, "a JSON schema or a Pydantic model class")
        given = {name: value for name, value in given.items() if value is not None}
        return cls(**given) if given else None


class _Model:
    """A Pydantic model class, as far as it matters here."""

    model_json_schema: Callable[[], dict[str, Any]]


def _makes_schema(value: Any) -> TypeGuard[type[_Model]]:
    return isinstance(value, type) and callable(getattr(value, "model_json_schema", None))


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that it names, unless it says otherwise: Pydantic leaves out
    ``additionalProperties`` as it ignores others, which a model need not write."""
    return map_schema(schema, lambda one: {"additionalProperties": False, **one} if "properties" in one else one)


def map_schema(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A JSON schema in which each schema that is a mapping is changed, the inner ones first."""
    if not isinstance(schema, Mapping):
        return schema
    mapped = dict(schema)
    for key, value in schema.items():
        if key in _ONE:
            mapped[key] = [map_schema(one, change) for one in value] if isinstance(value, list) else value
            mapped[key] = map_schema(mapped[key], change)
        elif key in _LISTS and isinstance(value, list):
            mapped[key] = [map_schema(one, change) for one in value]
        elif key in _NAMED and isinstance(value, Mapping):
            mapped[key] = {name: map_schema(one, change) for name, one in value.items()}
    return change(mapped)

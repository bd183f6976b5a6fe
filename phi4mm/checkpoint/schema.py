"""How the JSON files of a checkpoint are checked: types, bounds, and errors that name the file and the key.

The bounds are far above those of any model that exists; what is beyond them is a mistake, or meant to exhaust memory.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from phi4mm.errors import CheckpointError

Width = Annotated[int, Field(ge=1, le=2**17)]
Layers = Annotated[int, Field(ge=1, le=512)]
Heads = Annotated[int, Field(ge=1, le=2**12)]
Vocabulary = Annotated[int, Field(ge=1, le=2**22)]
TokenId = Annotated[int, Field(ge=0, lt=2**22)]
TokenIds = TokenId | Annotated[list[TokenId], Field(max_length=1024)]
Positions = Annotated[int, Field(ge=2, le=2**27)]
Window = Annotated[int, Field(ge=1, le=2**31)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Theta = Annotated[float, Field(ge=1, le=1e12)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Factors = Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(max_length=2**12)]
Rank = Annotated[int, Field(ge=1, le=2**16)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
ImageSide = Annotated[int, Field(ge=1, le=2**13)]
PatchSide = Annotated[int, Field(ge=1, le=2**10)]
Crops = Annotated[int, Field(ge=1, le=2**10)]
FeatureLayer = Annotated[int, Field(ge=-513, le=512)]
Mels = Annotated[int, Field(ge=1, le=2**9)]
TimeReduction = Annotated[int, Field(ge=2, le=64)]
KernelSize = Annotated[int, Field(ge=1, le=2**10)]
Distance = Annotated[int, Field(ge=1, le=2**17)]


class Section(BaseModel):
    """A JSON object. A key that holds ``null`` counts as absent; keys that are not in the schema are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class ExactSection(BaseModel):
    """A JSON object with the keys of the schema and no others."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


S = TypeVar("S", bound=BaseModel)

_SHOWN = 5


def checked(schema: type[S], values: object, name: str, advice: str = "download the file again") -> S:
    """An object of a checkpoint's file, checked.

    Args:
        schema: what it must be.
        values: as read from JSON.
        name: the file, and section in it.
        advice: what to do about an error.

    Raises:
        CheckpointError: naming each key that is missing, unknown, of the wrong type or out of bounds.
    """
    try:
        return schema.model_validate(values)
    except (ValidationError, OverflowError) as error:
        problems = _problems(error) if isinstance(error, ValidationError) else [str(error)]
        more = f" and {len(problems) - _SHOWN} more problems" if len(problems) > _SHOWN else ""
        raise CheckpointError(f"{name}: {'; '.join(problems[:_SHOWN])}{more}; {advice}") from error


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for one in error.errors(include_url=False):
        place, context = _place(one["loc"]), one.get("ctx", {})
        match one["type"]:
            case "missing":
                problems.append(f"{place} is missing")
            case "extra_forbidden":
                problems.append(f"{place} is unknown")
            case "value_error":  # of our own validators
                problems.append(f"{place}: {context['error']}" if place else str(context["error"]))
            case "literal_error":
                problems.append(f"{place} is {reprlib.repr(one['input'])}, but only {context['expected']} is supported")
            case "model_type" | "model_attributes_type" | "dict_type":
                problems.append(f"{place} is {reprlib.repr(one['input'])}, expected an object")
            case _:
                expected = one["msg"].removeprefix("Input should be ")
                problems.append(f"{place} is {reprlib.repr(one['input'])}, expected {expected}")
    return list(dict.fromkeys(problems))


def _place(location: Sequence[str | int]) -> str:
    """For example "adapters[0].rank". Parts that pydantic adds to tell the members of a union apart are left out."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier():
            place += f".{part}" if place else part
    return place


def check_token_ids(name: str, ids: Sequence[tuple[str, int]], vocab_size: int) -> None:
    """Refuse token ids beyond the vocabulary.

    Args:
        name: the file.
        ids: each with what it is called.
        vocab_size: of the model.

    Raises:
        CheckpointError: naming the first of them.
    """
    for key, token_id in ids:
        if token_id >= vocab_size:
            raise CheckpointError(
                f"{name}: {key} is {token_id}, but the vocabulary has {vocab_size} tokens (vocab_size); use the files "
                "that belong to the weights"
            )

"""Whatever a random model writes, a finished reply fits its schema. ``pytest --schemas 1000`` tries so many."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import pytest

from phi4mm import Phi4MM, PromptError
from tests.engine.schemas import random_schema


def validate(value: Any, schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    validator.check_schema(schema)
    validator.validate(value)


@pytest.mark.parametrize("name", ["tiny", "bundled"])
def test_finished_replies_fit_their_schemas(name: str, request: pytest.FixtureRequest) -> None:
    model: Phi4MM = request.getfixturevalue(name)
    number = request.config.getoption("schemas")
    # What ends strings, numbers, arrays and objects, so that many replies are finished.
    closing = {token_id: 4.0 for letter in '"]}' for token_id in model.processor.tokenizer.encode(letter)}
    schemas = [random_schema(Random(seed)) for seed in range(number)]
    requests = [
        {
            "text": "Hello",
            "response_format": schema,
            "seed": seed,
            "temperature": 4.0,
            "max_new_tokens": 200,
            "logit_bias": closing,
        }
        for seed, schema in enumerate(schemas)
    ]
    handles = [model.submit(request) for request in requests]
    errors = [handle.exception(300) for handle in handles]
    assert all(isinstance(error, PromptError | None) for error in errors), errors
    finished = 0
    for schema, handle, error in zip(schemas, handles, errors, strict=True):
        if error is None and (reply := handle.result()).finish_reason == "stop":
            finished += 1
            validate(json.loads(reply.text), schema)
    refused = sum(error is not None for error in errors)
    print(
        f"{number} schemas: {finished} finished, {refused} refused, {number - finished - refused} cut by their length"
    )
    assert finished > 0.7 * number

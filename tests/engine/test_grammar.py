"""Structured output: what is generated keeps to its grammar, alone and beside rows that are free."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel

from phi4mm import OutputFormat, Phi4MM, Phi4MMError, PromptError, Request
from phi4mm.engine.grammar import Grammars
from phi4mm.types import Reply
from tests.conftest import CONTROL_IDS

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "size": {"enum": ["small", "big"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "size", "people"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "strict": True, "parameters": CITY}},
    {
        "name": "stop",
        "parameters": {"when": {"description": "d", "type": "str", "default": ""}, "hard": {"type": "bool"}},
    },
]
# What fills a row with garbage that ends: strings of random bytes have a quotation mark soon.
ANY: dict[str, Any] = {"text": "Hello", "max_new_tokens": 120, "temperature": 5.0}


def fits(model: Phi4MM, schema: dict[str, Any], text: str) -> bool:
    """Whether the tokens of a text may come one after another."""
    grammars = model._client.grammars
    constraint = grammars.constraint(Request.make("x", response_format=schema))
    assert constraint is not None
    for token_id in grammars.tokenizer.tokenize_str(text):
        if not np.unpackbits(constraint.mask(), bitorder="little")[token_id]:
            return False
        constraint.push(token_id)
    return True


def outputs() -> list[dict[str, Any]]:
    return [
        {"response_format": CITY},
        {"response_format": {"type": "json_object"}, "logit_bias": {ord("}") - 33: 5.0}},
        {"regex": r"(yes|no), [a-zé]{5,9}/\d"},
        {"grammar": 'start: "a" number\nnumber: %json {"type": "integer", "maximum": 99, "minimum": 1}'},
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    ]


def test_constrained_rows_are_the_same_alone_and_beside_free_ones(tiny: Phi4MM) -> None:
    requests = [
        Request.make(**(ANY | options), seed=seed, logprobs=2)
        for seed, options in enumerate([*outputs(), *outputs(), {}, {"top_k": 5, "max_new_tokens": 30}])
    ]
    requests += [Request.make("Hello", max_new_tokens=30), Request.make("Hello", response_format=CITY)]
    together = tiny.chat_batch(requests, batch_size=32)
    assert tiny.chat_batch(requests[::-1], batch_size=3) == together[::-1]
    assert [tiny.chat_batch([request])[0] for request in requests] == together
    first, second = together[0], together[-1]
    for reply in (first, second):
        assert reply.finish_reason == "stop"
        jsonschema.validate(json.loads(reply.text), CITY)
    assert re.fullmatch(r"(yes|no), [a-zé]{5,9}/\d", together[2].text)
    assert re.fullmatch(r"a[1-9]\d?", together[3].text)


def test_greedy_choices_are_the_most_probable_of_those_allowed(tiny: Phi4MM) -> None:
    """Log-probabilities are the model's own, of all tokens: what was most probable there need not be allowed."""
    reply = tiny.chat("Hello", regex="[ab]{20}", logprobs=20)
    assert re.fullmatch("[ab]{20}", reply.text)
    assert reply.logprobs is not None
    free = tiny.chat("Hello", max_new_tokens=1, logprobs=20).logprobs
    assert free is not None
    assert reply.logprobs[0].top == free[0].top


def test_every_choice_has_a_grammar_of_its_own(tiny: Phi4MM) -> None:
    reply = tiny.chat("Hello", response_format=CITY, n=5, seed=3, temperature=5.0)
    texts = [one.text for one in (reply, *reply.alternatives)]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), CITY)


def test_a_row_ends_only_where_its_text_is_complete(tiny: Phi4MM) -> None:
    ends = {"logit_bias": {CONTROL_IDS["<|end|>"]: 100.0}}
    assert tiny.chat("Hello", regex="[ab]{7}", **ends).text
    digits = tiny.processor.tokenizer.encode("0123456")
    reply = tiny.chat("Hello", response_format=CITY, stop_token_ids=digits)
    jsonschema.validate(json.loads(reply.text), CITY)
    own = tiny.chat(
        "Hello", regex="[ab]{3,}", stop_token_ids=tiny.processor.tokenizer.encode("c"), logit_bias={66: 100.0}
    )
    assert (len(own.text), own.finish_reason) == (3, "stop")
    cut = tiny.chat("Hello", response_format=CITY, max_new_tokens=9)
    assert (cut.text, cut.finish_reason) == ('{"name": ', "length")


def test_streams_and_cancellation(tiny: Phi4MM) -> None:
    assert "".join(tiny.stream("Hello", response_format=CITY)) == tiny.chat("Hello", response_format=CITY).text
    handle = tiny.submit({"text": "Hello", "regex": "a{2000}", "max_new_tokens": 1900})
    assert next(iter(handle)) == "a"
    handle.cancel()
    assert handle.result(20).finish_reason == "cancelled"


class Size(BaseModel):
    width: int
    kind: Literal["box", "bag"]


class Parcel(BaseModel):
    sizes: tuple[Size, Size]
    weight: float | None = None


def test_pydantic_models(tiny: Phi4MM) -> None:
    for seed in range(10):
        reply = tiny.chat("Hello", response_format=Parcel, seed=seed, temperature=5.0, max_new_tokens=300)
        if reply.finish_reason == "stop":
            parcel = Parcel.model_validate_json(reply.text)
            assert json.loads(reply.text) == parcel.model_dump(mode="json", exclude_unset=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": {"type": "array", "uniqueItems": True}}, "json_schema: the keywords uniqueItems are not"),
        ({"response_format": {"properties": {"a": {"not": {}}}}}, "json_schema: the keywords not are not supported"),
        ({"response_format": {"type": "string", "format": "colour"}}, "json_schema: Unknown format: colour"),
        ({"response_format": {"$ref": "#/$defs/x"}}, "json_schema: Pointer '/.defs/x' does not exist"),
        ({"response_format": {"type": "string", "pattern": "(?=a)b"}}, "json_schema: look-around.*is not supported"),
        ({"response_format": {"type": "string", "x-guidance": {"lenient": True}, "format": "x"}}, "Unknown format: x"),
        ({"response_format": {"enum": ["x" * 70_000]}}, "are 7.... bytes long; expected 65536 at most"),
        ({"response_format": {"a": object()}}, "json_schema: it cannot be written as JSON"),
        ({"output": OutputFormat(json_schema=False)}, "json_schema is False"),
        ({"regex": "[a-"}, "regex: unclosed character class"),
        ({"regex": "(?=a)b"}, "regex: look-around"),
        ({"grammar": "start: x"}, 'lark: .*unknown name: "x"'),
        ({"grammar": "start: start"}, "no text fits the grammar"),
        ({"grammar": "start: <|no_token|>"}, "no control token <.no_token"),
        (
            {"tools": [{"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}}]},
            "tools: the parameters of 'f': the keywords not are",
        ),
        ({"tools": TOOLS, "tool_choice": {"name": "go"}}, "tool_choice names 'go'; expected one of .*weather, stop"),
    ],
)
def test_what_cannot_be_compiled_is_refused(tiny: Phi4MM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        tiny.chat("Hello", **options)
    error = tiny.submit({"text": "Hello", **options}).exception(20)
    assert isinstance(error, PromptError)
    assert re.search(message, str(error))


def test_deep_schemas(tiny: Phi4MM) -> None:
    schema: Any = {"type": "null"}
    for depth in range(2000):
        schema = {"type": "array", "items": schema}
        if depth == 40:
            tiny.chat("Hello", response_format=schema, max_new_tokens=2)
        if depth in (120, 1999):
            with pytest.raises(PromptError, match=r"json_schema: .*(nested|recursion)"):
                tiny.chat("Hello", response_format=schema)


def test_a_bad_schema_costs_its_request_alone(tiny: Phi4MM) -> None:
    good = {"text": "Hello", "max_new_tokens": 5}
    with pytest.raises(Phi4MMError) as caught:
        tiny.chat_batch([good, {"text": "x", "response_format": {"not": {}}}, good])
    assert list(caught.value.errors) == [1]  # type: ignore[attr-defined]
    assert caught.value.results[0] == caught.value.results[2] == tiny.chat(**good)  # type: ignore[attr-defined]


def test_a_processor_cannot_leave_the_grammar(tiny: Phi4MM) -> None:
    def prefers(token_ids: Any, logits: Any) -> Any:
        logits[5] += 1e4
        return logits

    assert re.fullmatch("[ab]{5}", tiny.chat("Hello", regex="[ab]{5}", processors=[prefers]).text)
    with pytest.raises(Phi4MMError, match="no token is left to choose"):
        tiny.chat("Hello", regex="a", banned_tokens=tiny.processor.tokenizer.encode("a"))


def test_many_threads(tiny: Phi4MM) -> None:
    expected = tiny.chat("Hello", response_format=CITY)
    replies: list[Reply] = []

    def ask() -> None:
        replies.append(tiny.chat("Hello", response_format=CITY))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert replies == [expected] * 8


def test_control_tokens_keep_their_ids_and_are_no_text(tokenizer_file: Path, tiny: Phi4MM, tmp_path: Path) -> None:
    """Also where the file has gaps among its ids, as that of the full model, and calls some of them ordinary text."""
    description = json.loads(tokenizer_file.read_text())
    for token in description["added_tokens"]:
        token["id"] += 5 if token["content"] == "<|tag|>" else 0
        token["special"] = False
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(description))
    grammars = Grammars(type(tiny.processor.tokenizer)(file), vocab_size=300, stop_token_ids=[CONTROL_IDS["<|end|>"]])
    made = grammars.tokenizer
    assert made.vocab_size == 300
    assert made.eos_tokens == [CONTROL_IDS["<|end|>"]]
    assert all(made.is_special_token(token["id"]) for token in description["added_tokens"])
    assert made.decode_bytes([grammars.tokenizer.tokenize_str("a")[0]]) == b"a"
    assert len(made.tokenize_str("<|tool_call|>")) == len("<|tool_call|>")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"response_format": {"const": "<|tool_call|>/<|end|>"}}, '"<|tool_call|>/<|end|>"'),
        ({"regex": r"a<\|end\|>b"}, "a<|end|>b"),
        ({"grammar": 'start: "<|end|>" <|tool_call|> /b<\\|end\\|>/  // <|no_token|>'}, "<|end|><|tool_call|>b<|end|>"),
    ],
)
def test_names_of_control_tokens_in_text(tiny: Phi4MM, options: dict[str, Any], expected: str) -> None:
    reply = tiny.chat("Hello", **options)
    assert reply.text == expected
    used = [name for name, token_id in CONTROL_IDS.items() if token_id in reply.token_ids]
    assert used == (["<|tool_call|>"] if "grammar" in options else [])


@pytest.mark.parametrize(
    ("pattern", "excluded"),
    [
        ('^[^"]$', '"'),
        (r"^[^/\\]$", r"/\\"[:2]),
        (r"^[^\n\"\\]$", '\n"\\'),
        (r"^\P{P}$", '"\\/]'),
        (r'^(x|[^\]"\\])$', ']"\\'),
        ('^[^]"]$', ']"'),
        (r"^[\S\s]$", ""),
    ],
)
def test_patterns_that_exclude_what_json_escapes(tiny: Phi4MM, pattern: str, excluded: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    named = {"type": "object", "patternProperties": {pattern: {"type": "null"}}, "additionalProperties": False}
    for character in '"\\\n\ta/]':
        assert fits(tiny, schema, json.dumps(character)) is (character not in excluded), character
        assert fits(tiny, named, json.dumps({character: None})) is (character not in excluded), character


def test_names_have_one_spelling(tiny: Phi4MM) -> None:
    """An escaped name is not another one, which ``additionalProperties`` would allow."""
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"const": 1}}
    texts = ('{"a": null}', '{"b": 1}', '{"a": 1}', '{"\\u0061": 1}')
    assert [fits(tiny, schema, text) for text in texts] == [True, True, False, False]


def test_without_llguidance(tiny: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    grammars = Grammars(tiny.processor.tokenizer, vocab_size=272, stop_token_ids=[0])
    with pytest.raises(Phi4MMError, match="pip install llguidance"):
        grammars.constraint(Request.make("x", regex="a"))

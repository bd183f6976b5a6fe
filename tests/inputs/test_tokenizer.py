"""Added tokens beside and in text, compared with the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.errors import CheckpointError
from phi4mm.inputs.prompt import render
from phi4mm.inputs.tokenizer import TextStream, Tokenizer
from phi4mm.types import Request
from tests.conftest import CONTROL_IDS, NUM_BYTES

THINK = {"content": "<think>", "special": False}
ADDED: list[dict[str, Any]] = [
    {"content": "<|user|>", "special": True, "rstrip": True},
    {"content": "<|end|>", "special": True, "rstrip": True, "lstrip": True},
    {"content": "<|assistant|>", "special": True},
    {"content": "<|tool|>", "special": False, "rstrip": True},
    THINK,
    {"content": "</think>", "special": False, "rstrip": True, "lstrip": True},
    {"content": "<think>>", "special": False},
    {"content": "word", "special": False, "single_word": True},
]
NAMES = [token["content"] for token in ADDED]
CONTROL, IN_TEXT = NAMES[:4], NAMES[4:]


def with_added(file: Path, added: list[dict[str, Any]], target: Path) -> Path:
    """The tokenizer of ``file`` with other added tokens."""
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    description = json.loads(file.read_text())
    description["added_tokens"] = [{**defaults, "id": NUM_BYTES + n, **token} for n, token in enumerate(added)]
    target.write_text(json.dumps(description))
    return target


@pytest.fixture(scope="module")
def file(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_added(tokenizer_file, ADDED, tmp_path_factory.mktemp("added") / "tokenizer.json")


@pytest.fixture(scope="module")
def ours(file: Path) -> Tokenizer:
    return Tokenizer(file)


@pytest.fixture(scope="module")
def theirs(file: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(file))


BLANK = st.sampled_from([" ", "\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "\u200b", "a", "é", "<", "word", "words"])


@given(st.lists(st.sampled_from(NAMES) | BLANK, max_size=12))
def test_a_prompt_has_the_ids_of_the_library(ours: Tokenizer, theirs: tokenizers.Tokenizer, parts: list[str]) -> None:
    expected = theirs.encode("".join(parts), add_special_tokens=False).ids
    assert ours.join([ours.control(part) if part in CONTROL else part for part in parts]) == expected


@given(st.lists(st.sampled_from(IN_TEXT) | BLANK, max_size=12))
def test_text_with_added_tokens_has_the_ids_of_the_library(
    ours: Tokenizer, theirs: tokenizers.Tokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_that_are_not_special_stay_in_the_text(ours: Tokenizer) -> None:
    ids = [ours.control("<|assistant|>"), *ours.encode("<think>hm"), ours.control("<|tool|>"), ours.control("<|end|>")]
    assert ours.decode(ids) == "<think>hm<|tool|>"
    stream = TextStream(ours)
    assert "".join(map(stream.push, ids)) + stream.finish() == "<think>hm<|tool|>"


@pytest.mark.parametrize("name", CONTROL)
def test_control_tokens_are_spelled_out_in_text(ours: Tokenizer, name: str) -> None:
    ids = ours.encode(f" {name} ")
    assert max(ids) < NUM_BYTES
    assert ours.decode(ids) == f" {name} "


def test_blanks_beside_control_tokens_of_a_request(tokenizer_file: Path, tmp_path: Path) -> None:
    added = [{"content": name, "special": True, "rstrip": True, "id": id_} for name, id_ in CONTROL_IDS.items()]
    tokenizer = Tokenizer(with_added(tokenizer_file, added, tmp_path / "tokenizer.json"))
    history = [{"role": "assistant", "content": "\n\nyes "}]
    blank = Request("  Hi ", system="\tS", history=history)
    stripped = Request("Hi ", system="S", history=[{"role": "assistant", "content": "yes "}])
    assert render(blank, tokenizer) == render(stripped, tokenizer)


def test_what_training_left_in_the_file_changes_nothing(tokenizer_file: Path, tmp_path: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    library.enable_truncation(3)
    library.enable_padding(length=20)
    library.model.dropout = 1.0
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path / "tokenizer.json").encode("a long text") == Tokenizer(tokenizer_file).encode(
        "a long text"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": -1}, r"added_tokens\.0\.id: Input should be greater than or equal to 0, found -1"),
        ({"id": "5"}, r"added_tokens\.0\.id: .*integer, found '5'"),
        ({"content": ""}, r"added_tokens\.0\.content: "),
        ({"rstrip": 1}, r"added_tokens\.0\.rstrip: "),
    ],
)
def test_bad_added_tokens(tokenizer_file: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = with_added(tokenizer_file, [{**THINK, **change}], tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(file)

"""The chat template and the tokenizer: text is data, media stand where the text places them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4mm.errors import CheckpointError, PromptError
from phi4mm.inputs.prompt import MediaPlace, render, speech_prompt
from phi4mm.inputs.tokenizer import TextStream, Tokenizer
from phi4mm.types import Request, SamplingParams
from tests.conftest import CONTROL_IDS, CONTROL_TOKENS

IMAGE, AUDIO = b"image", b"audio"  # media are not read here


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


def readable(tokenizer: Tokenizer, request: Request) -> str:
    """The rendered prompt with control tokens and media written out."""
    names = {token_id: name for name, token_id in CONTROL_IDS.items()}
    parts = []
    for piece in render(request, tokenizer):
        if isinstance(piece, MediaPlace):
            parts.append(f"[{piece.kind} {piece.index}]")
        else:
            parts.append(names.get(piece) or tokenizer.decode([piece]))
    return "".join(parts)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("Hi"), "<|user|>Hi<|end|><|assistant|>"),
        (Request("Hi", system="Be kind."), "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"),
        (
            Request("Hi", system="S", tools=[{"name": "f"}]),
            '<|system|>S<|tool|>[{"name": "f"}]<|/tool|><|end|><|user|>Hi<|end|><|assistant|>',
        ),
        (
            Request("c", history=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
            "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>",
        ),
        (
            Request("Q", images=[IMAGE, IMAGE], audios=[AUDIO]),
            "<|user|>[image 0][image 1][audio 0]Q<|end|><|assistant|>",
        ),
        (
            Request("A <|audio_1|> B <|image_2|> C <|image_1|>", images=[IMAGE, IMAGE], audios=[AUDIO]),
            "<|user|>A [audio 0] B [image 1] C [image 0]<|end|><|assistant|>",
        ),
        (
            Request("And now?", images=[IMAGE], history=[{"role": "user", "content": "<|image_1|>What?"}]),
            "<|user|>[image 0]What?<|end|><|user|>And now?<|end|><|assistant|>",
        ),
        (
            Request(
                "ok",
                history=[
                    {"role": "assistant", "content": '<|tool_call|>[{"name": "f"}]<|/tool_call|>'},
                    {"role": "tool", "content": "<|end|>"},
                ],
            ),
            '<|assistant|><|tool_call|>[{"name": "f"}]<|/tool_call|><|end|><|tool_response|><|end|><|end|>'
            "<|user|>ok<|end|><|assistant|>",
        ),
    ],
)
def test_template(tokenizer: Tokenizer, request_: Request, expected: str) -> None:
    assert readable(tokenizer, request_) == expected


@pytest.mark.parametrize("name", [*CONTROL_TOKENS, "<|image_1|>", "<|audio_1|>"])
def test_text_cannot_inject_control_tokens(tokenizer: Tokenizer, name: str) -> None:
    spelled = tokenizer.encode(name)
    assert tokenizer.decode(spelled) == name
    assert set(spelled).isdisjoint(CONTROL_IDS.values())
    user, end, assistant = (CONTROL_IDS[f"<|{role}|>"] for role in ("user", "end", "assistant"))
    system, answer = CONTROL_IDS["<|system|>"], CONTROL_IDS["<|tool_response|>"]
    assert render(Request(name), tokenizer) == [user, *spelled, end, assistant]
    assert render(Request("", system=name), tokenizer) == [system, *spelled, end, user, end, assistant]
    turns = [{"role": "tool", "content": name}]
    assert render(Request("", history=turns), tokenizer) == [answer, *spelled, end, assistant]


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids).isdisjoint(CONTROL_IDS.values())
    stream = TextStream(tokenizer)
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join([*pieces, stream.finish()]) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("<|image_2|>", images=[IMAGE]), ("<|image_2|>", "carries 1")),
        (Request("<|image_0|>", images=[IMAGE]), ("<|image_0|>", "from 1")),
        (Request("<|image_1|><|image_1|>", images=[IMAGE]), ("<|image_1|>", "once")),
        (Request("<|audio_2|>", audios=[AUDIO, AUDIO]), ("audio", "number 1")),
        (Request("x", history=[{"role": "king", "content": "a"}]), ("turn 1", "king")),
        (Request("x", history=[{"role": "user"}]), ("turn 1", "content")),
        (Request("x", history=["hello"]), ("turn 1", "hello")),
        (Request("x", tools=[{"f": object()}]), ("tools", "JSON")),
        (Request("x", tools=["f"]), ("tools", "mappings")),
        (Request("half \ud800 a character"), ("surrogate",)),
    ],
)
def test_bad_prompts(tokenizer: Tokenizer, request_: Request, words: tuple[str, ...]) -> None:
    with pytest.raises(PromptError) as caught:
        render(request_, tokenizer)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": 5},
        {"text": ""},
        {"text": " \n\t"},
        {"system": 5},
        {"images": "cat.png"},
        {"audios": b"RIFF"},
        {"history": None},
        {"history": {"role": "user"}},
        {"tools": {"name": "f"}},
        {"tools": None},
        {"adapter": 5},
        {"adapter": ("speech", 5)},
        {"sampling": {"top_k": 3}},
        {"stop": "end"},
        {"stop": None},
        {"stop": [""]},
        {"stop_token_ids": [-1]},
        {"banned_tokens": 5},
        {"logit_bias": [(1, 2.0)]},
        {"logit_bias": {"a": 2.0}},
        {"logit_bias": {5: float("nan")}},
        {"logprobs": 21},
        {"logprobs": True},
        {"n": 0},
        {"seed": "7"},
        {"seed": 1.5},
        {"seed": 2**70},
        {"seed": True},
        {"processors": [5]},
        {"max_new_tokens": 0},
        {"max_new_tokens": "9"},
        {"temperature": None},
        {"presence_penalty": 3},
        {"min_p": -0.5},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0},
    ],
)
def test_bad_options(fields: dict[str, object]) -> None:
    """Each names the option and is short."""
    with pytest.raises(PromptError) as caught:
        Request.of({"text": "x", **fields})
    name, value = next(iter(fields.items()))
    assert ("is empty" if isinstance(value, str) and not value.strip() else name) in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_request_needs_something_to_answer() -> None:
    for fields in ({"images": [IMAGE]}, {"audios": [AUDIO]}, {"history": [{"role": "user", "content": "x"}]}):
        assert Request.of({"text": " ", **fields}).text == " "


def test_request_of_mapping() -> None:
    assert Request.of({"text": "x", "top_k": 3}) == Request("x", sampling=SamplingParams(top_k=3))
    both = Request.make("x", sampling=SamplingParams(top_k=3, seed=1), seed=2)
    assert both.sampling == SamplingParams(top_k=3, seed=2)
    with pytest.raises(PromptError, match="tmperature"):
        Request.of({"text": "x", "tmperature": 1})
    with pytest.raises(PromptError, match="int"):
        Request.of(5)


def test_control_tokens_are_dropped_from_text_but_for_tool_calls(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), CONTROL_IDS["<|end|>"], CONTROL_IDS["<|tool_call|>"], *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == "a<|tool_call|>b"


def test_speech_prompts() -> None:
    assert speech_prompt("transcribe") == "Transcribe the audio clip into text."
    assert speech_prompt("translate", "German") == "Translate the audio to German."
    assert "<sep>" in speech_prompt("transcribe_translate", "German")
    for task, language in (("sing", None), ("translate", None), ("transcribe", "German")):
        with pytest.raises(PromptError, match=task):
            speech_prompt(task, language)


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("word", ["<|audio_1|>", "<|image_1|>", "<|end|>"])
def test_hotwords_and_language_are_plain_text(tokenizer: Tokenizer, word: str) -> None:
    for text, around in (
        (
            speech_prompt("transcribe", hotwords=["a", word]),
            "Transcribe the audio clip into text. These words may occur: a, {}.",
        ),
        (speech_prompt("translate", word), "Translate the audio to {}."),
        (speech_prompt("transcribe", prompt="<|audio_1|>Write", hotwords=[word]), "Write These words may occur: {}."),
    ):
        rendered = readable(tokenizer, Request(text, audios=[AUDIO]))
        assert rendered == f"<|user|>[audio 0]{around.format(word)}<|end|><|assistant|>"


def test_only_ascii_digits_number_media(tokenizer: Tokenizer) -> None:
    name = "<|image_\u0661|>"  # Arabic-Indic 1
    assert render(Request(name, images=[IMAGE]), tokenizer)[2:-2] == tokenizer.encode(name)
    assert readable(tokenizer, Request("<|image_01|>", images=[IMAGE])) == "<|user|>[image 0]<|end|><|assistant|>"
    for digits in ("9" * 5000, "9" * 12):
        with pytest.raises(PromptError, match=r"<\|image_999.*carries 1") as caught:
            render(Request(f"<|image_{digits}|>", images=[IMAGE]), tokenizer)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "request_",
    [
        Request("x" * 10**8),
        Request("x", system="x" * 10**8),
        Request("x", tools=[{"name": "x" * 10**7}]),
        Request("x", history=[{"role": "user", "content": "x"}] * 10**7),
        Request("x", images=range(10**12)),
        Request("x", history=[{"role": "user", "content": "x" * 400}] * 10),
    ],
    ids=["text", "system", "tools", "turns", "images", "sum"],
)
def test_long_prompts_are_refused_before_they_cost_time(tokenizer: Tokenizer, request_: Request) -> None:
    encoded = []
    tokenizer = cast("Tokenizer", Counting(tokenizer, encoded))
    with pytest.raises(PromptError, match=r"at least \d+ tokens long; this model holds 2048: shorten it"):
        render(request_, tokenizer, 2048)
    assert sum(map(len, encoded)) < 4096


class Counting:
    """A tokenizer that keeps what it encoded."""

    def __init__(self, tokenizer: Tokenizer, encoded: list[str]) -> None:
        self.control, self.longest_token = tokenizer.control, tokenizer.longest_token
        self._tokenizer, self._encoded = tokenizer, encoded

    def join(self, parts: list[Any]) -> list[Any]:
        self._encoded += [part for part in parts if isinstance(part, str)]
        return self._tokenizer.join(parts)

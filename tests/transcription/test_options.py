"""Options of requests and transcriptions: each is checked by name, and the keyword arguments are their fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from phi4mm import PromptError, Request, SamplingParams
from phi4mm.engine.options import EngineOptions
from phi4mm.inputs.prompt import speech_prompt
from phi4mm.options import DecodingOptions, RequestOptions, SamplingOptions
from phi4mm.transcription.options import LONGEST_SUMMARY, SpeechOptions, TranscribeOptions

NAN, INFINITE = float("nan"), float("inf")


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_keyword_arguments_are_the_fields() -> None:
    sampling = names(SamplingParams)
    assert set(SamplingOptions.__annotations__) == sampling
    assert set(DecodingOptions.__annotations__) == {"adapter", "sampling"} | sampling
    assert set(RequestOptions.__annotations__) == names(Request) - {"text"} | sampling
    assert set(TranscribeOptions.__annotations__) == names(SpeechOptions) | set(DecodingOptions.__annotations__)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vad", ["yes", None, 1, 0.5]),
        ("channel", ["left", -1, True, 0.0]),
        ("max_piece", [0, 0.5, "20", NAN, INFINITE, True]),
        ("min_silence", [0, -1, None, "1", NAN]),
        ("vad_threshold", [0.1, 1, None, "high", NAN]),
        ("batch_size", [0, 2.0, None, "8", True]),
        ("temperature_increment", [-0.2, 0.001, 2, None, NAN]),
        ("compression_ratio_threshold", [None, "2", NAN, INFINITE, False]),
        ("logprob_threshold", [None, "-1", NAN, -INFINITE]),
        ("no_speech_threshold", [None, [0.6], NAN]),
        ("word_timestamps", ["yes", None, 1]),
    ],
)
def test_a_bad_value_is_one_error_that_names_its_option(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(PromptError, match=rf"^{name} is .*; expected .+"):
            SpeechOptions(**{name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(EngineOptions)])
def test_bounds_of_the_engine(name: str) -> None:
    for value in (0, -1, "8", NAN, True, *(() if name == "cache_tokens" else (None,))):
        with pytest.raises(PromptError, match=rf"^{name} is .*; expected .+"):
            EngineOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("task", {"task": "sing"}),
        ("task", {"task": None}),
        ("task", {"task": ["transcribe"]}),
        ("to", {"task": "translate", "to": 5}),
        ("to", {"task": "translate", "to": " "}),
        ("prompt", {"prompt": 5}),
        ("prompt", {"prompt": ""}),
        ("hotwords", {"hotwords": "Ada"}),
        ("hotwords", {"hotwords": [5]}),
        ("hotwords", {"hotwords": ["Ada", ""]}),
        ("hotwords", {"hotwords": None}),
    ],
)
def test_instructions(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=rf"^{name} is .*; expected .+"):
        speech_prompt(arguments.pop("task", "transcribe"), arguments.pop("to", None), **arguments)


def test_split() -> None:
    speech, decoding = SpeechOptions.split({"vad": False, "temperature": 0.5, "adapter": None})
    assert speech == SpeechOptions(vad=False)
    assert decoding == {"temperature": 0.5, "adapter": None}
    assert SpeechOptions.split({}, task="summarize")[0].max_piece == LONGEST_SUMMARY
    assert SpeechOptions.split({"max_piece": 9}, task="summarize")[0].max_piece == 9
    with pytest.raises(PromptError, match=r"^unknown options max_pieces; known are .*max_piece"):
        SpeechOptions.split({"max_pieces": 9})
    with pytest.raises(PromptError, match="word_timestamps"):
        SpeechOptions.split({"word_timestamps": True}, task="translate")

"""What was computed for one request and is of use to another is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4mm import Phi4MM
from phi4mm.engine.options import EngineOptions
from phi4mm.inputs import processor
from phi4mm.model.phi4mm import Phi4MMModel
from tests.media import picture, speech

SAMPLES = Path(__file__).parent.parent / "assets" / "samples"


@pytest.fixture
def fresh(tiny_model: Phi4MMModel, tokenizer_file: Path) -> Iterator[Callable[..., Phi4MM]]:
    """Makes models with empty caches."""
    made: list[Phi4MM] = []

    def make(**options: Any) -> Phi4MM:
        made.append(Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=4096, **options)))
        return made[-1]

    yield make
    for model in made:
        model.close()


@pytest.fixture
def encoded(tiny_model: Phi4MMModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the towers that were called."""
    return count_calls(tiny_model, monkeypatch)


def count_calls(model: Phi4MMModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    called: list[str] = []
    for name in ("vision", "speech"):
        forward = getattr(model, name).forward

        def count(*arguments: Any, name: str = name, forward: Any = forward, **options: Any) -> Any:
            called.append(name)
            return forward(*arguments, **options)

        monkeypatch.setattr(getattr(model, name), "forward", count)
    return called


@pytest.mark.parametrize(
    ("media", "tower"),
    [({"images": [picture(120, 90)]}, "vision"), ({"audios": [speech(3.0)]}, "speech")],
    ids=["picture", "clip"],
)
def test_a_second_question_about_a_medium(
    fresh: Callable[..., Phi4MM], encoded: list[str], media: dict[str, Any], tower: str
) -> None:
    model, options = fresh(), {**media, "max_new_tokens": 8}
    first = model.chat("What is it?", **options)
    second = model.chat("And what else is in it?", **options)
    assert encoded == [tower]
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens >= 20
    assert second.usage.cached_tokens < second.usage.prompt_tokens
    assert second == fresh().chat("And what else is in it?", **options)
    other_adapter = model.chat("What is it?", **options, adapter=None)
    assert other_adapter.usage.cached_tokens == 0
    assert encoded == [tower] * 2  # of each model


def test_the_next_turn_of_a_chat_and_a_common_system_message(fresh: Callable[..., Phi4MM]) -> None:
    model, system = fresh(), "Answer in one word, as short as you can."
    first = model.chat("Hello there", system=system, max_new_tokens=10)
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": first.text}]
    second = model.chat("And then?", system=system, history=turns, max_new_tokens=10)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second == fresh().chat("And then?", system=system, history=turns, max_new_tokens=10)
    assert model.chat("Something else", system=system, max_new_tokens=1).usage.cached_tokens >= len(system)


def test_samples_of_one_prompt_compute_it_once(fresh: Callable[..., Phi4MM], encoded: list[str]) -> None:
    options: dict[str, Any] = {"audios": [speech(2.0)], "temperature": 1.0, "seed": 4, "max_new_tokens": 6}
    reply = fresh().chat("Write", n=5, **options)
    assert encoded == ["speech"]
    cached = [one.usage.cached_tokens for one in (reply, *reply.alternatives)]
    assert cached == [0, *[reply.usage.prompt_tokens - 1] * 4]
    assert fresh().chat("Write", **options).token_ids == reply.token_ids


def test_embeddings_are_reused_where_the_prefix_is_not(fresh: Callable[..., Phi4MM], encoded: list[str]) -> None:
    model, clip = fresh(), speech(2.0)
    first = model.chat("One", audios=[clip], max_new_tokens=2)
    later = model.chat("Before it <|audio_1|> and after it", audios=[clip], max_new_tokens=2)
    assert (first.usage.cached_tokens, later.usage.cached_tokens) == (0, 0)
    assert encoded == ["speech"]
    small = fresh(encoder_bytes=1)
    assert small.chat("One", audios=[clip], max_new_tokens=2) == first
    assert small.chat("Before it <|audio_1|> and after it", audios=[clip], max_new_tokens=2) == later
    assert encoded == ["speech"] * 3


def test_retries_and_word_alignment_encode_a_piece_once(bundled: Phi4MM, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled.drop_caches()
    called = count_calls(bundled.model, monkeypatch)
    options: dict[str, Any] = {"logprob_threshold": 0.0, "compression_ratio_threshold": 0.0}  # every decoding fails
    clip = SAMPLES / "number.flac"
    [segment] = bundled.transcribe(clip, word_timestamps=True, temperature_increment=0.5, **options).segments
    assert segment.words
    assert called == ["speech"]


@pytest.mark.parametrize(
    ("media", "maker"),
    [({"images": [picture(120, 90)]}, "prepare_image"), ({"audios": [speech(3.0)]}, "log_mel")],
    ids=["picture", "clip"],
)
def test_features_are_made_once(
    fresh: Callable[..., Phi4MM], monkeypatch: pytest.MonkeyPatch, media: dict[str, Any], maker: str
) -> None:
    made = []
    make = getattr(processor, maker)

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(maker)
        return make(*arguments, **options)

    monkeypatch.setattr(processor, maker, counted)
    model = fresh()
    for text in ("What is it?", "And what else?"):
        model.chat(text, **media, max_new_tokens=2)
    assert made == [maker]
    model.drop_caches()
    reply = model.chat("And what else?", **media, max_new_tokens=8)
    assert made == [maker] * 2
    assert fresh().chat("And what else?", **media, max_new_tokens=8) == reply

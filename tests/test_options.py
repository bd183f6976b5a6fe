"""Every option of every call, handed values of every kind: each call works, or raises one short ``Phi4MMError``."""

from __future__ import annotations

import decimal
import fractions
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phi4mm import Phi4MM, Phi4MMError, Request, SamplingParams
from phi4mm.engine.options import EngineOptions
from phi4mm.transcription.options import SpeechOptions
from phi4mm.validate import shown
from tests.media import picture, speech

VALUES: list[Any] = [
    *[None, True, False, ..., -1, 0, 1, 2, 3.0, 0.5, -0.5, math.nan, math.inf, -math.inf, 1j, 10**30, -(10**30)],
    *[10**400, np.int64(2), np.uint8(3), np.float32(0.5), np.float64(math.nan), np.bool_(True), np.str_("x")],
    *[np.zeros(4), np.zeros(()), torch.zeros(3), torch.tensor(1), torch.float32, decimal.Decimal(1)],
    *[fractions.Fraction(1, 2), fractions.Fraction(10**400), "", " ", "x", "auto", "\0", "\ud800", "y" * 400_000],
    *["a+" * 5000, "<|image_1|>", "<|audio_\u0661|>", "user", f"<|image_{'1' * 5000}|>", b"", b"x", bytearray(b"x")],
    *[object(), object, len, Path("no/such"), {1, 2}, iter([1]), memoryview(b"x"), range(3000)],
    *[[], [None], [1], ["x"], [b"x"], [""], [[]], [10**400], [np.int64(1)], ["x"] * 3000, ["y" * 5000], [5, "x"]],
    *[[math.nan], (), (None,), ("x",), ("x", "x"), (1, 2), ("speech", "speech"), (None, 16000), ([], 16000)],
    *[{}, {1: 1}, {1: math.inf}, {"a": 1}, {None: None}, {10**400: 1.0}, {np.int64(1): np.float32(1)}, {"text": "x"}],
    *[[{}], [{"role": "user"}], [{"role": "user", "content": "x"}], [{"role": [], "content": 1}], [{"content": []}]],
    *[[{"role": "user", "content": [{"type": "image"}]}], [{"role": "user", "content": [{"type": [], "image": 5}]}]],
    *[[{"role": "tool", "content": "x"}] * 3000, [{"role": "assistant", "tool_calls": 5}]],
    *[{"array": 5, "sampling_rate": []}, {"bytes": None, "path": 5}],
]


def cyclic() -> list[Any]:
    value: list[Any] = [{}]
    value[0]["x"] = value
    return value


def deep() -> list[Any]:
    value: Any = {}
    for _ in range(5000):
        value = {"x": value}
    return [value]


def check(call: Callable[..., Any], name: str, value: Any) -> str | None:
    """What is wrong with how a call takes a value."""
    try:
        call(**{name: value})
    except Phi4MMError as error:
        message = str(error)
        if not 10 < len(message) <= 1500 or "\n" in message:
            return f"{name}={shown(value)}: {len(message)} characters: {message:.100}"
    except Exception as error:
        return f"{name}={shown(value)}: {type(error).__name__}: {error!s:.100}"
    return None


def faults(call: Callable[..., Any], names: list[str]) -> list[str]:
    values = [*VALUES, cyclic(), deep()]
    found = (check(call, name, value) for name in names for value in values)
    return [fault for fault in found if fault is not None]


SAMPLING = [field.name for field in fields(SamplingParams)]
REQUEST = [field.name for field in fields(Request)]


def test_chat(tiny: Phi4MM) -> None:
    def call(**options: Any) -> None:
        given = {"text": "Hi", "max_new_tokens": 1, **options}
        tiny.submit(Request.make(**given)).cancel()
        if "max_new_tokens" not in options:
            tiny.chat(**given)

    assert faults(call, [*REQUEST, *SAMPLING, "response_format", "regex", "grammar"]) == []


def test_the_other_ways_to_ask(tiny: Phi4MM, tmp_path: Path) -> None:
    assert faults(lambda **given: tiny.chat_batch([{"text": "x", "max_new_tokens": 1, **given}]), ["history"]) == []
    assert faults(lambda **given: tiny.chat_batch(**{"requests": [], **given}), ["requests", "batch_size"]) == []
    assert faults(lambda **given: tiny.submit(**given).cancel(), ["request"]) == []
    assert faults(lambda **given: tiny.processor(**given), ["requests"]) == []
    assert faults(lambda **given: tiny.stream(**given, max_new_tokens=1).close(), ["text", "seed", "unknown"]) == []  # type: ignore[attr-defined]


def test_media(tiny: Phi4MM) -> None:
    assert faults(lambda media: tiny.chat("x", images=[picture(9, 9), media], max_new_tokens=1), ["media"]) == []
    assert faults(lambda media: tiny.chat("x", audios=[speech(0.3), media], max_new_tokens=1), ["media"]) == []
    assert faults(lambda media: tiny.transcribe(media), ["media"]) == []


def test_transcribe(tiny: Phi4MM) -> None:
    own = [field.name for field in fields(SpeechOptions)]
    names = ["task", "to", "prompt", "hotwords", "adapter", "sampling", *own, *SAMPLING]

    def call(**options: Any) -> None:
        fixed = {"vad": False, "max_new_tokens": 1, "temperature_increment": 0, **options}
        tiny.transcribe_stream(speech(0.3), **fixed).close()
        if not options.keys() & {"max_new_tokens", "vad"}:
            tiny.transcribe(speech(0.3), **fixed)

    assert faults(call, names) == []


def test_transcribe_batch(tiny: Phi4MM) -> None:
    assert faults(lambda **given: tiny.transcribe_batch(**{"audios": [], **given}), ["audios", "batch_size", "n"]) == []
    clip = [speech(0.3)]
    names = ["task", "to", "prompt", "hotwords", "adapter", "sampling", "n", "logprobs", "stop", "unknown"]
    assert faults(lambda **given: tiny.transcribe_batch(clip, **{"max_new_tokens": 1, **given}), names) == []


def test_loading_and_saving(tiny: Phi4MM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("phi4mm.api.load", lambda source, **_: pytest.fail(f"loads {source!r:.40}"))
    names = ["source", "device", "dtype", "quantize", "merge", "prepack", "compile", "revision", "max_rows", "options"]

    def load(**given: Any) -> None:
        try:
            Phi4MM.from_pretrained(**given)
        except pytest.fail.Exception:  # all options are good
            return

    assert faults(load, [*names, "cache_tokens"]) == []
    assert faults(lambda **given: EngineOptions(**given), [field.name for field in fields(EngineOptions)]) == []
    assert faults(lambda **given: tiny.save_pretrained(**given), ["folder"]) == []
    assert faults(lambda **given: tiny.save_pretrained("here", **given), ["layout"]) == []


def test_adapters(tiny: Phi4MM, tmp_path: Path) -> None:
    assert (
        faults(lambda **given: tiny.adapters.load(**{"name": "x", "folder": tmp_path, **given}), ["name", "folder"])
        == []
    )
    assert faults(lambda **given: tiny.adapters.unload(**given), ["name"]) == []

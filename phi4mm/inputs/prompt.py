"""The chat template: a request's turns to token ids, with places for its media.

``<|system|>S<|tool|>JSON<|/tool|><|end|><|user|>U<|end|><|assistant|>``, no newlines (Phi-4-multimodal model card).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi4mm.errors import PromptError
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.types import Request
from phi4mm.validate import check_choice, check_strings, check_text, wrong

_PLACEHOLDER = re.compile(r"<\|(image|audio)_(\d+)\|>")
_TOOL_CALL_MARK = re.compile(r"(<\|/?tool_call\|>)")
_ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|tool_response|>"}

TRANSCRIBE_PROMPT = "Transcribe the audio clip into text."
_TRANSLATE_PROMPT = "Translate the audio to {language}."
_BOTH_PROMPT = (
    "Transcribe the audio to text, and then translate the audio to {language}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
_SUMMARIZE_PROMPT = "Summarize the audio."  # the model card gives no wording for this
_HOTWORDS = "{prompt} These words may occur: {words}."  # nor for this


@dataclass(frozen=True)
class MediaPlace:
    """Where a medium's tokens go: ``kind`` is "image" or "audio", ``index`` counts from 0 among its kind."""

    kind: str
    index: int


Piece = int | MediaPlace


def speech_prompt(
    task: str, language: str | None = None, *, prompt: str | None = None, hotwords: Sequence[str] = ()
) -> str:
    """The instruction of a speech task, in the model card's wording unless another is given.

    Args:
        task: "transcribe", "translate", "transcribe_translate" (both, separated by ``<sep>``) or "summarize".
        language: what to translate to, in English ("German"); only for the two that translate.
        prompt: the user's own wording, which stands for the task's.
        hotwords: names and terms that may occur; they are listed after the instruction.

    Raises:
        PromptError: one of these has the wrong type, the task is unknown, or the language is missing or out of place.
    """
    templates = {
        "transcribe": TRANSCRIBE_PROMPT,
        "translate": _TRANSLATE_PROMPT,
        "transcribe_translate": _BOTH_PROMPT,
        "summarize": _SUMMARIZE_PROMPT,
    }
    check_choice("task", task, templates)
    check_text("to", language, or_none=True)
    check_text("prompt", prompt, or_none=True)
    check_strings("hotwords", hotwords, "words")
    if prompt is None:
        if ("{language}" in templates[task]) != (language is not None):
            expected = "no language (to=None)" if language is not None else 'a language, such as to="German"'
            raise PromptError(f"task {task!r} takes {expected}; got to={language!r}")
        prompt = templates[task].format(language=language)
    return _HOTWORDS.format(prompt=prompt, words=", ".join(hotwords)) if hotwords else prompt


def render(request: Request, tokenizer: Tokenizer) -> list[Piece]:
    """The request as token ids and media places, ending where the answer begins.

    Raises:
        PromptError: a turn, a tool or a placeholder is wrong.
    """
    counts = {"image": len(request.images), "audio": len(request.audios)}
    turns = [*(_turn(turn, number) for number, turn in enumerate(request.history, 1)), ("user", request.text)]
    placed = [
        MediaPlace(kind, int(number) - 1)
        for role, content in turns
        if role == "user"
        for kind, number in _PLACEHOLDER.findall(content)
        if counts[kind]
    ]
    _check_places(placed, counts)

    pieces: list[str | Piece] = []
    if request.system is not None or request.tools:
        pieces += [tokenizer.control("<|system|>"), request.system or ""]
        if request.tools:
            pieces += [tokenizer.control("<|tool|>"), _tools_json(request.tools), tokenizer.control("<|/tool|>")]
        pieces.append(tokenizer.control("<|end|>"))

    placed_kinds = {place.kind for place in placed}
    for number, (role, content) in enumerate(turns):
        pieces.append(tokenizer.control(_ROLES[role]))
        if number == len(turns) - 1:
            for kind in ("image", "audio"):
                if kind not in placed_kinds:
                    pieces += [MediaPlace(kind, index) for index in range(counts[kind])]
        pieces += _content(role, content, counts, tokenizer)
        pieces.append(tokenizer.control("<|end|>"))
    pieces.append(tokenizer.control("<|assistant|>"))
    return tokenizer.join(pieces)


def _turn(turn: Mapping[str, str], number: int) -> tuple[str, str]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    if role not in _ROLES or not isinstance(content, str):
        raise PromptError(
            f'history turn {number} is {turn!r:.80}; expected {{"role": one of {", ".join(_ROLES)}, "content": text}}'
        )
    return role, content


def _check_places(placed: Sequence[MediaPlace], counts: Mapping[str, int]) -> None:
    for place in placed:
        name = f"<|{place.kind}_{place.index + 1}|>"
        if not 0 <= place.index < counts[place.kind]:
            raise PromptError(
                f"the text places {name}, but the request carries {counts[place.kind]} {place.kind}(s); "
                f"number them from 1, or pass the missing {place.kind}"
            )
        if placed.count(place) > 1:
            raise PromptError(f"the text places {name} {placed.count(place)} times; place each {place.kind} once")
    for kind, count in counts.items():
        indices = {place.index for place in placed if place.kind == kind}
        missing = [str(index + 1) for index in range(count) if index not in indices]
        if indices and missing:
            raise PromptError(
                f"the text places some {kind}s but not number {', '.join(missing)}; "
                f"place every {kind} as <|{kind}_N|>, or none to put them all first"
            )


def _content(role: str, content: str, counts: Mapping[str, int], tokenizer: Tokenizer) -> list[str | Piece]:
    """A turn's text; only user turns place media, only assistant turns hold tool calls."""
    if role == "assistant":
        parts = _TOOL_CALL_MARK.split(content)
        return [tokenizer.control(part) if _TOOL_CALL_MARK.fullmatch(part) else part for part in parts]
    pieces: list[str | Piece] = []
    start = 0
    if role == "user":
        for match in _PLACEHOLDER.finditer(content):
            kind = match[1]
            if counts[kind]:
                pieces += [content[start : match.start()], MediaPlace(kind, int(match[2]) - 1)]
                start = match.end()
    return [*pieces, content[start:]]


def _tools_json(tools: Sequence[Mapping[str, Any]]) -> str:
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise wrong("tools", tools, "a list of mappings (name, description, parameters)")
    try:
        return json.dumps(list(tools), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise PromptError(f"tools cannot be written as JSON ({error}); use plain values, lists, dicts") from error

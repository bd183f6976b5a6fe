"""The chat template: a request's turns to token ids, with places for its media.

``<|system|>S<|tool|>JSON<|/tool|><|end|><|user|>U<|end|><|assistant|>``, no newlines (Phi-4-multimodal model card).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi4mm.content import Content, MediaPlace, appended, is_blank, is_content, with_places
from phi4mm.errors import PromptError
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.inputs.tools import calls_json, ordered_results, shown_tools
from phi4mm.types import Request
from phi4mm.validate import check_choice, check_strings, check_text, shown, wrong

_TOOL_CALL_MARK = re.compile(r"(<\|/?tool_call\|>)")
_ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|tool_response|>"}

TRANSCRIBE_PROMPT = "Transcribe the audio clip into text."
_TRANSLATE_PROMPT = "Translate the audio to {language}."
_BOTH_PROMPT = (
    "Transcribe the audio to text, and then translate the audio to {language}. "
    "Use <sep> as a separator between the original transcript and the translation."
)
_SUMMARIZE_PROMPT = "Summarize the audio."  # the model card gives no wording for this
_HOTWORDS = " These words may occur: "  # nor for this

Piece = int | MediaPlace


def speech_prompt(
    task: str, language: str | None = None, *, prompt: str | None = None, hotwords: Sequence[str] = ()
) -> Content:
    """The instruction of a speech task, in the model card's wording unless another is given. Only ``prompt`` may place
    the audio, with ``<|audio_1|>``: language and hot words are plain text.

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
    own = templates[task]
    if prompt is None and ("{language}" in own) != (language is not None):
        expected = "no language (to=None)" if language is not None else 'a language, such as to="German"'
        raise PromptError(f"task {task!r} takes {expected}; got to={shown(language)}")
    plain = [(_HOTWORDS, ", ".join(hotwords)), (".", "")] if hotwords else []
    if prompt is None:
        own, *ends = own.split("{language}")
        plain = [*(pair for end in ends for pair in (("", language or ""), (end, ""))), *plain]
    return appended(own if prompt is None else prompt, *plain)


def render(request: Request, tokenizer: Tokenizer, max_tokens: int = sys.maxsize) -> list[Piece]:
    """The request as token ids and media places, ending where the answer begins.

    Args:
        request: what to render.
        tokenizer: of the checkpoint.
        max_tokens: that a prompt may have. A longer one is refused before it costs time.

    Raises:
        PromptError: a turn, a tool or a placeholder is wrong, or the prompt is too long.
    """
    counts = {"image": len(request.images), "audio": len(request.audios)}
    _check_length(2 * len(request.history) + sum(counts.values()), max_tokens)
    turns = [_turn(turn, number, counts) for number, turn in enumerate(ordered_results(request.history), 1)]
    question = with_places(request.text, counts)
    opening = _opening(request)
    texts = [text for _, text in opening] + [turn.calls for turn in turns]
    texts += [part for parts in (question, *(turn.parts for turn in turns)) for part in parts if isinstance(part, str)]
    _check_length(sum(map(len, texts)) // tokenizer.longest_token, max_tokens)

    placed = [part for parts in (question, *(turn.parts for turn in turns)) for part in _places(parts)]
    _check_places(placed, counts)
    placed_kinds = {place.kind for place in placed}
    first = [MediaPlace(kind, index) for kind in counts if kind not in placed_kinds for index in range(counts[kind])]
    question = (*first, *question)
    # After the results of tools the answer is due, unless there is something to add.
    if not (turns and turns[-1].role == "tool" and is_blank(question)):
        turns.append(_Turn("user", question))

    pieces: list[str | Piece] = []
    for control, text in opening:
        pieces += [tokenizer.control(control), text]
    for turn in turns:
        pieces.append(tokenizer.control(_ROLES[turn.role]))
        for part in turn.parts:
            pieces += _assistant(part, tokenizer) if turn.role == "assistant" else [part]
        if turn.calls:
            pieces += [tokenizer.control("<|tool_call|>"), turn.calls, tokenizer.control("<|/tool_call|>")]
        pieces.append(tokenizer.control("<|end|>"))
    pieces.append(tokenizer.control("<|assistant|>"))
    return tokenizer.join(pieces)


def _check_length(least: int, max_tokens: int) -> None:
    if least >= max_tokens:
        raise PromptError(f"the prompt is at least {least} tokens long; this model holds {max_tokens}: shorten it")


def _opening(request: Request) -> list[tuple[str, str]]:
    """What comes before the turns: control tokens, each with the text that follows it."""
    shown_to_model = shown_tools(request)
    if request.system is None and not shown_to_model:
        return []
    tools = [("<|tool|>", json.dumps(shown_to_model, ensure_ascii=False)), ("<|/tool|>", "")] if shown_to_model else []
    return [("<|system|>", request.system or ""), *tools, ("<|end|>", "")]


@dataclass(frozen=True)
class _Turn:
    """A turn, and the JSON of the tool calls that end it."""

    role: str
    parts: tuple[str | MediaPlace, ...]
    calls: str = ""


def _turn(turn: Any, number: int, counts: Mapping[str, int]) -> _Turn:
    values: Mapping[str, Any] = turn if isinstance(turn, Mapping) else {}
    role, content, calls = values.get("role"), values.get("content"), values.get("tool_calls")
    where = f"history turn {number}"
    if role == "assistant" and calls and content is None:
        content = ""
    known = isinstance(role, str) and role in _ROLES
    if not known or not (is_content(content) if role == "user" else isinstance(content, str)):
        raise wrong(where, turn, f'{{"role": one of {", ".join(_ROLES)}, "content": text}}')
    if calls and role != "assistant":
        raise PromptError(f"{where}: a turn of role {role} has tool_calls; only those of the assistant may")
    parts = with_places(content or "", counts) if role == "user" else (content or "",)
    return _Turn(str(role), parts, calls_json(calls, where) if calls else "")


def _places(parts: Sequence[str | MediaPlace]) -> list[MediaPlace]:
    return [part for part in parts if isinstance(part, MediaPlace)]


def _check_places(placed: Sequence[MediaPlace], counts: Mapping[str, int]) -> None:
    for place, times in Counter(placed).items():
        if times > 1:
            name = f"<|{place.kind}_{place.index + 1}|>"
            raise PromptError(f"the text places {name} {times} times; place each {place.kind} once")
    for kind, count in counts.items():
        indices = {place.index for place in placed if place.kind == kind}
        missing = [str(index + 1) for index in range(count) if index not in indices]
        if indices and missing:
            raise PromptError(
                f"the text places some {kind}s but not number {', '.join(missing[:5])}; "
                f"place every {kind} as <|{kind}_N|>, or none to put them all first"
            )


def _assistant(part: str | MediaPlace, tokenizer: Tokenizer) -> list[str | Piece]:
    """A part of an assistant's turn: the marks of tool calls in it are control tokens."""
    assert isinstance(part, str)  # only users' turns place media
    texts = _TOOL_CALL_MARK.split(part)
    return [tokenizer.control(text) if _TOOL_CALL_MARK.fullmatch(text) else text for text in texts]

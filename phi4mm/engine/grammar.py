"""Structured output: what requests ask for, compiled to grammars by llguidance (https://github.com/guidance-ai).

JSON is written as Python's ``json.dumps`` writes it, with one space after each comma and colon of its own and none
elsewhere, in the order of the schema's properties: a model cannot go on with blanks for ever, and the tool calls that
Phi-4-multimodal was trained on have this form. There are no ``\\uXXXX`` escapes: with them llguidance 1.9.1 takes a
name that is spelled so for one that the schema does not have.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi4mm.engine.constraint import Constraint
from phi4mm.errors import CheckpointError, Phi4MMError, PromptError
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.inputs.tools import callable_tools, must_call, strict_names
from phi4mm.output_format import map_schema
from phi4mm.types import OutputFormat, Request

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_BYTES = 1 << 16  # of all that is compiled for a request: about a second's work at most
MAX_DEPTH = 100  # of a schema's mappings and lists
MAX_LEXER_STATES = 50_000  # of 1 to 2 kB each
_CALL, _END_CALL = "<|tool_call|>", "<|/tool_call|>"
_LARK = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/|(<\|[^<>\s]+\|>)')  # a control token: group 1
# Ends the names of control tokens for llguidance, which would find them in text otherwise: no character.
_MARK = "\U0010ffff"
_JSON_OPTIONS = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "json_allowed_escapes": 'nrbtf\\"',
}
_CLASS = re.compile(
    r"\\[pP](?:\{[^}]*\}|.)|\\.|\[\^?\]?", re.DOTALL
)  # a class by name, an escape, the beginning of a class
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[(.*)\]")


@dataclass(frozen=True)
class _Part:
    """A grammar of its own, in llguidance's form, and what an error calls it."""

    label: str
    grammar: dict[str, Any]


class Grammars:
    """Compiles the grammars of requests for one model. It may be used from any thread.

    Args:
        tokenizer: of the checkpoint.
        vocab_size: of the logits.
        stop_token_ids: the checkpoint's tokens that end a reply.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, stop_token_ids: Collection[int]) -> None:
        self._own_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_token_ids = sorted(stop_token_ids)
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary in llguidance's form, made at the first use: about a second for 200,000 tokens.

        Raises:
            Phi4MMError: it cannot be made.
        """
        with self._lock:
            if self._made is None:
                self._made = _make_tokenizer(self._own_tokenizer.file, self._vocab_size, self._stop_token_ids)
            return self._made

    def constraint(self, request: Request) -> Constraint | None:
        """What holds the replies to a request to the form that it asks for; ``None``: they are free.

        Raises:
            PromptError: a schema, grammar or tool is wrong, too large or not supported.
        """
        if not is_structured(request):
            return None
        parts, start, is_free_before = _parts(request)
        parts = [replace(part, grammar=self._with_ids(part.grammar)) for part in parts]
        grammar = json.dumps({"grammars": [self._with_ids(start), *(part.grammar for part in parts)]})
        if len(grammar) > MAX_BYTES:
            raise PromptError(
                f"the schemas and grammars of the request are {len(grammar)} bytes long; expected {MAX_BYTES} at most"
            )
        matcher = self._matcher(grammar)
        if matcher.is_error():
            for part in parts:
                alone = self._matcher(json.dumps({"grammars": [part.grammar]}))
                if alone.is_error():
                    raise _refusal(part.label, alone.get_error())
            raise _refusal("the grammar of the output", matcher.get_error())
        constraint = Constraint(
            matcher,
            self.tokenizer,
            stop_token_ids=[
                token_id
                for token_id in request.sampling.stop_token_ids
                if token_id < self._vocab_size and token_id not in self._stop_token_ids
            ],
            trigger=self._own_tokenizer.control(_CALL) if is_free_before else None,
        )
        constraint.mask()  # a grammar that no text fits is refused here
        return constraint

    def _with_ids(self, grammar: dict[str, Any]) -> dict[str, Any]:
        """A grammar with the ids of control tokens for their names.

        Raises:
            PromptError: there is no such token.
        """

        def by_id(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]
            try:
                return f"<[{self._own_tokenizer.control(match[1])}]>"
            except CheckpointError as error:
                raise PromptError(f"lark: {error}") from error

        lark = grammar.get("lark_grammar")
        return grammar if lark is None else {**grammar, "lark_grammar": _LARK.sub(by_id, lark)}

    def _matcher(self, grammar: str) -> LLMatcher:
        tokenizer = self.tokenizer
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def is_structured(request: Request) -> bool:
    """Whether a grammar has to be compiled for it."""
    return request.sampling.output is not None or (bool(request.tools) and request.tool_choice != "none")


def _parts(request: Request) -> tuple[list[_Part], dict[str, Any], bool]:
    """The grammars of a request, the one that refers to them by name, and whether the reply is free until it begins a
    tool call."""
    output = request.sampling.output
    parts = [] if output is None else [_output(output)]
    tools = callable_tools(request) if request.tools else {}
    if not tools:
        return parts, {"lark_grammar": "start: @output"}, False
    strict = strict_names(request.tools)
    calls = []
    for number, (name, schema) in enumerate(tools.items()):
        grammar = _json_grammar(schema, "tools", lenient=name not in strict)
        calls.append(_Part(f"tools: the parameters of {name!r}", {"name": f"arguments_{number}", **grammar}))
    is_free_before = output is None and not must_call(request)
    starts = [f"{_CALL} calls {_END_CALL}"]
    if must_call(request):
        parts = []  # the reply is a call, not a text
    elif output is not None:
        starts.append("@output")
    else:
        starts.append('"functools" calls')
    more = ' (", " call)*' if request.parallel_tool_calls else ""
    rules = [
        f"start: {' | '.join(starts)}",
        f'calls: "[" call{more} "]"',
        f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}",
        *(_call_rule(number, name) for number, name in enumerate(tools)),
    ]
    return [*parts, *calls], {"lark_grammar": "\n".join(rules)}, is_free_before


def _output(output: OutputFormat) -> _Part:
    if output.regex is not None:
        pattern = output.regex.replace("\n", r"\n").replace("/", r"\/")
        return _Part("regex", {"name": "output", "lark_grammar": f"start: /{pattern}/"})
    if output.lark is not None:
        return _Part("lark", {"name": "output", "lark_grammar": output.lark})
    schema: Any = {"type": "object"} if output.json_object else output.json_schema
    if schema is False:
        raise PromptError("json_schema is False, which nothing fits; expected a schema")
    return _Part("json_schema", {"name": "output", **_json_grammar({} if schema is True else schema, "json_schema")})


def _json_grammar(schema: Mapping[str, Any], name: str, *, lenient: bool = False) -> dict[str, Any]:
    """A schema in llguidance's form; its own options for llguidance are dropped.

    Args:
        schema: a JSON schema.
        name: what errors call it.
        lenient: keywords that are not supported are passed over.

    Raises:
        PromptError: it cannot be written as JSON, or is nested too deeply.
    """
    try:
        options = {**_JSON_OPTIONS, "lenient": lenient, "coerce_one_of": lenient}
        text = json.dumps({**schema, "x-guidance": options})
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{name}: it cannot be written as JSON ({error}); use plain values, lists, dicts") from error
    depth = deepest = 0
    for letter in re.sub(r'"(?:[^"\\]|\\.)*"', "", text):
        depth += (letter in "{[") - (letter in "}]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise PromptError(f"{name}: a schema is nested {deepest} deep; expected {MAX_DEPTH} at most")
    return {"json_schema": map_schema(json.loads(text), _without_nul)}


def _without_nul(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose patterns do not match NUL by a class of characters. In a class that has all control characters,
    llguidance 1.9.1 takes escaped quotation marks and backslashes for part of it even if they are not."""
    changed = dict(schema)
    if isinstance(schema.get("pattern"), str):
        changed["pattern"] = pattern_without_nul(schema["pattern"])
    if isinstance(schema.get("patternProperties"), Mapping):
        named = schema["patternProperties"].items()
        changed["patternProperties"] = {pattern_without_nul(name): one for name, one in named}
    return changed


def pattern_without_nul(pattern: str) -> str:
    """A regular expression with ``[...]`` as ``[[...]&&[^\\x00]]``."""
    parts, start = [], 0
    while found := _CLASS.search(pattern, start):
        end = found.end()
        if pattern[found.start()] == "[":
            end = _class_end(pattern, end)
        text = pattern[found.start() : end]
        is_class = text[0] == "[" or text[1] in "pP"
        parts += [pattern[start : found.start()], f"[{text}&&[^\\x00]]" if is_class else text]
        start = end
    return "".join([*parts, pattern[start:]])


def _class_end(pattern: str, start: int) -> int:
    """Where the class ends whose content begins at ``start``; there may be others in it."""
    depth, place = 1, start
    while depth and place < len(pattern):
        letter = pattern[place]
        depth += (letter == "[") - (letter == "]")
        place += 2 if letter == "\\" else 1
    return min(place, len(pattern))


def _call_rule(number: int, name: str) -> str:
    """The rule of a call of one tool."""
    before = json.dumps(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": ', ensure_ascii=False)
    return f'call_{number}: {before} @arguments_{number} "}}"'


def _refusal(label: str, reason: str) -> PromptError:
    """The error of a grammar, of what llguidance reports of it."""
    found = _UNIMPLEMENTED.search(reason)
    if found:
        keywords = ", ".join(sorted(re.findall(r'"([^"]*)"', found[1])))
        return PromptError(f"{label}: the keywords {keywords} are not supported; leave them out")
    [regex_error, *_] = re.findall(r"^error: (.*)$", reason, re.MULTILINE) or [""]
    return PromptError(f"{label}: {regex_error or reason.strip().splitlines()[0]:.200}; correct it")


def _make_tokenizer(file: Path, vocab_size: int, stop_token_ids: Collection[int]) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise Phi4MMError("structured output and tools need llguidance: pip install llguidance") from error
    description = json.loads(file.read_text(encoding="utf-8"))
    added = {int(token["id"]): token["content"] for token in description.get("added_tokens") or []}
    text = {token: token_id for token, token_id in description["model"]["vocab"].items() if token_id not in added}
    # The ids of added tokens hold only where the vocabulary has them and all before them.
    added |= {i: f"<|unused_{i}|>" for i in sorted(set(range(vocab_size)).difference(text.values(), added))}
    named = {name + _MARK: token_id for token_id, name in sorted(added.items())}
    description["model"]["vocab"] = text | named
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    description["added_tokens"] = [
        {"id": token_id, "content": name, "special": True, **flags} for name, token_id in named.items()
    ]
    try:
        return LLTokenizer(json.dumps(description), n_vocab=vocab_size, eos_token=list(stop_token_ids))
    except ValueError as error:
        raise Phi4MMError(
            f"{file}: llguidance cannot use this tokenizer ({error}); structured output needs it"
        ) from error

"""What users hand in and get back: requests, replies and transcripts. Importing this does not import torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Protocol, cast

from phi4mm.content import Content, is_blank, is_content, is_messages, read_messages
from phi4mm.errors import PromptError
from phi4mm.output_format import OutputFormat as OutputFormat
from phi4mm.transcript import Segment as Segment
from phi4mm.transcript import Transcript as Transcript
from phi4mm.transcript import Word as Word
from phi4mm.validate import (
    check_bool,
    check_number,
    check_sequence,
    check_strings,
    check_whole,
    is_whole,
    make_plain,
    plain,
    shorter,
    wrong,
)

DEFAULT_MAX_NEW_TOKENS = 512
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 64, 1000  # each is looked for after every token
MAX_TOKEN_IDS = 1 << 20  # of a list of token ids: more than any vocabulary has
_FORMATS = ("response_format", "regex", "grammar")  # ways to write ``output`` in ``Request.make``
_SEEDS = range(-(2**63), 2**64)  # 64 bits, with a sign or without, as torch.Generator takes them


class Modality(StrEnum):
    """What a request carries beside its text."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    IMAGE_AUDIO = "image+audio"

    @classmethod
    def of(cls, *, has_images: bool, has_audios: bool) -> Modality:
        if has_images:
            return cls.IMAGE_AUDIO if has_audios else cls.IMAGE
        return cls.AUDIO if has_audios else cls.TEXT


@dataclass(frozen=True)
class Route:
    """Where a row goes: the LoRA adapters whose updates it adds (none: the bare decoder) and the projector of its
    audio."""

    adapters: tuple[str, ...] = ()
    audio_projector: str | None = None

    @property
    def adapter(self) -> str | None:
        """Deprecated: ``adapters``, joined with "+"; ``None`` for none."""
        warnings.warn("Route.adapter is deprecated; use Route.adapters, a tuple", DeprecationWarning, stacklevel=2)
        return "+".join(self.adapters) or None


class LogitsProcessor(Protocol):
    """Changes a row's logits before the next token is chosen; it is called once for each token of its row.

    It runs in the engine's thread: an exception that it raises ends its row alone.
    """

    def __call__(self, token_ids: Sequence[int], logits: Any) -> Any:
        """The logits to choose from, as a tensor [vocabulary]; ``logits`` may be changed in place and returned.

        Args:
            token_ids: what was generated so far, without the prompt.
            logits: a float32 tensor [vocabulary], after penalties and bias.
        """
        ...


@dataclass(frozen=True)
class SamplingParams:
    """How a row's tokens are chosen, and when it ends.

    Attributes:
        max_new_tokens: the most tokens to generate, the stop token included.
        temperature: 0 for greedy decoding; otherwise what the logits are divided by.
        top_p: keep the smallest set of tokens whose probability exceeds this (Holtzman et al. 2020).
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this many times as probable as the most probable one (Nguyen et al. 2024).
        repetition_penalty: divides positive and multiplies negative logits of tokens that are in the row, the prompt
            included (Keskar et al. 2019); 1 changes nothing.
        presence_penalty: subtracted from the logits of tokens that were generated before (OpenAI), -2 to 2.
        frequency_penalty: the same, for each time that they were generated.
        logit_bias: token id -> added to its logit, -100 to 100.
        banned_tokens: token ids that are never chosen.
        stop: strings that end the reply; they are not part of it. At most 64 of at most 1000 characters.
        stop_token_ids: tokens that end the row, beside the checkpoint's own; they are not part of the reply.
        logprobs: report the log-probability of each generated token and of so many of the most probable ones, 0 to 20;
            ``None`` for none.
        n: how many replies; the others than the first are in ``Reply.alternatives``.
        seed: of this row's own random numbers, so that in float32 its tokens are the same alone and in any batch; in
            bfloat16 and float16 logits are rounded differently in batches of other sizes, which may turn a draw.
            ``None`` for a fresh one.
        processors: called one after another on the row's logits before each choice.
        output: what the text must be: only tokens that keep to it are chosen, and a token ends the row only where the
            text is complete. ``max_new_tokens`` and ``stop`` may still end it before. ``None``: anything.

    Numbers may be numpy's. That token ids are in the vocabulary is checked when the request is handed in.

    Raises:
        PromptError: a value has the wrong type or is out of range; it names the option.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Sequence[int] = ()
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    n: int = 1
    seed: int | None = None
    processors: Sequence[LogitsProcessor] = ()
    output: OutputFormat | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_number("top_p", self.top_p, 0.0, 1.0, open_below=True)
        check_whole("top_k", self.top_k, 0)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_below=True)
        check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.logit_bias, Mapping):
            raise wrong("logit_bias", self.logit_bias, "a mapping of token ids to numbers")
        if len(self.logit_bias) > MAX_TOKEN_IDS:
            raise PromptError(f"logit_bias has {len(self.logit_bias)} items; expected at most {MAX_TOKEN_IDS}")
        for token_id, bias in self.logit_bias.items():
            check_whole("logit_bias: token id", token_id, 0)
            check_number(f"logit_bias of token {token_id}", bias, -100.0, 100.0)
        biases = {plain(token_id): plain(value) for token_id, value in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", biases)
        for name in ("banned_tokens", "stop_token_ids"):
            check_sequence(name, getattr(self, name), "token ids", most=MAX_TOKEN_IDS)
            for token_id in getattr(self, name):
                check_whole(f"{name}: token id", token_id, 0)
            object.__setattr__(self, name, tuple(plain(token_id) for token_id in getattr(self, name)))
        check_strings("stop", self.stop, most=MAX_STOP_STRINGS, longest=MAX_STOP_LENGTH)
        check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS, or_none=True)
        check_whole("n", self.n, 1, MAX_CHOICES)
        if self.seed is not None and (not is_whole(self.seed) or self.seed not in _SEEDS):
            raise wrong("seed", self.seed, "a whole number of up to 64 bits, or None")
        check_sequence("processors", self.processors, "functions")
        for processor in self.processors:
            if not callable(processor):
                raise wrong("processors", processor, "functions of (token_ids, logits)")
        if not isinstance(self.output, OutputFormat | None):
            raise wrong("output", self.output, "an OutputFormat or None")

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a vocabulary of this size does not have.

        Raises:
            PromptError: there is one; it names the option.
        """
        for name in ("logit_bias", "banned_tokens", "stop_token_ids"):
            largest = max(getattr(self, name), default=0)
            if largest >= size:
                raise PromptError(f"{name}: token id {shorter(largest)}; expected 0 to {size - 1}")

    @property
    def is_greedy(self) -> bool:
        """Whether the highest logit decides."""
        return self.temperature == 0.0


@dataclass(frozen=True)
class Request:
    """One row: a question with its media, and how to answer it. Greedily decoded, it is answered as it would be alone,
    whatever runs beside it; sampled, so in float32 (see ``SamplingParams.seed``).

    Attributes:
        text: the user's text. It is data: control tokens in it are read as plain text. It may place the request's
            media with ``<|image_1|>``, ``<|audio_1|>``; without placeholders images, then audios, come first. Or a
            tuple of strings, which are plain text as they are, and of ``phi4mm.content.MediaPlace``.
        images: each a path, bytes, an open binary file, a ``PIL.Image.Image`` or a row of ``datasets``
            (``{"bytes": ..., "path": ...}``).
        audios: each a path, bytes, an open binary file, ``(samples, sampling_rate)`` with samples in [-1, 1], or a row
            of ``datasets`` (``{"array": ..., "sampling_rate": ...}``).
        system: the system message.
        history: earlier turns, each ``{"role": "user" | "assistant" | "tool", "content": text}``. User turns may place
            the request's media too. An assistant's may have ``tool_calls``, as ``Reply.tool_calls`` or as OpenAI has
            them; a tool's may have the ``tool_call_id`` of the call that it answers. After a tool's turn ``text`` may
            be empty: the answer follows the tool's.
        tools: tool definitions, each ``{"name", "description", "parameters"}``, or OpenAI's ``{"type": "function",
            "function": {...}}``; the parameters are a JSON schema or the model card's ``{name: {"description", "type",
            "default"}}``. Keywords of the schema that are not supported are passed over, unless the tool has
            ``"strict": True``.
        tool_choice: whether the reply calls tools: ``"none"`` (it does not; they are left out of the prompt),
            ``"auto"`` (as the model decides), ``"required"`` (it does), ``{"name": ...}`` (this one), or ``{"allowed":
            [names], "mode": "auto" | "required"}`` (only these). A call names one of the tools, and its arguments fit
            that tool's parameters.
        parallel_tool_calls: whether there may be several calls in one reply.
        adapter: ``"auto"`` (by modality), ``None`` (the bare decoder), an adapter's name, a tuple of names whose
            updates are summed, or ``"auto+NAME"`` for one on top of the modality's own.
        sampling: how tokens are chosen and when the reply ends.

    Raises:
        PromptError: a field has the wrong type, or there is nothing to answer: no text but blanks, no media, no
            history and no system message.
    """

    text: Content = ""
    images: Sequence[Any] = ()
    audios: Sequence[Any] = ()
    system: str | None = None
    history: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    adapter: str | tuple[str, ...] | None = "auto"
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if not is_content(self.text):
            raise wrong("text", self.text, "a string, or by Request.make a list of messages")
        for name, items in (("images", "images"), ("audios", "audios"), ("history", "turns"), ("tools", "tools")):
            check_sequence(name, getattr(self, name), f"{items}, even for a single one")
        if not isinstance(self.system, str | None):
            raise wrong("system", self.system, "a string or None")
        _check_tool_choice(self.tool_choice, has_tools=bool(self.tools))
        check_bool("parallel_tool_calls", self.parallel_tool_calls)
        names = self.adapter if isinstance(self.adapter, tuple) else ()
        if not isinstance(self.adapter, str | tuple | None) or not all(isinstance(name, str) for name in names):
            raise wrong("adapter", self.adapter, "a name, a tuple of names, or None")
        if not isinstance(self.sampling, SamplingParams):
            raise wrong("sampling", self.sampling, "SamplingParams")
        if is_blank(self.text) and not (self.images or self.audios or self.history or self.system):
            raise PromptError("the request is empty; expected a text that is not blank, an image or audio")

    @classmethod
    def of(cls, value: Request | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Request:
        """A request from a request, from a list of messages (see ``make``), or from a mapping with its fields; those of
        ``SamplingParams`` stand among them.

        Raises:
            PromptError: a key is not a field, or the value is neither.
        """
        if isinstance(value, Request):
            return value
        if is_messages(value):
            return cls.make(cast("Sequence[Mapping[str, Any]]", value))
        if not isinstance(value, Mapping):
            raise PromptError(f"a request is a {type(value).__name__}; expected a Request or a dict")
        return cls.make(**{str(key): item for key, item in value.items()})

    @classmethod
    def make(cls, /, text: Content | Sequence[Mapping[str, Any]] = "", **options: Any) -> Request:
        """A request from its fields, those of ``SamplingParams`` among them or together as ``sampling``; and
        ``response_format``, ``regex`` or ``grammar`` for ``output`` (``OutputFormat.of``).

        In place of the text there may be a list of messages as chat templates take them, which hold the system
        message, the history and the media too (``phi4mm.content.read_messages``)::

            [{"role": "user",
              "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]}]

        Raises:
            PromptError: an option is not known, or its value is bad.
        """
        own, sampling = _names(cls), _names(SamplingParams)
        unknown = [name for name in options if name not in own | sampling | set(_FORMATS)]
        if unknown:
            known = [*(field.name for field in (*fields(cls), *fields(SamplingParams))), *_FORMATS]
            hint = "; a list of messages is one request: put it into a list" if "role" in unknown else ""
            names = ", ".join(map(shorter, unknown))
            raise PromptError(f"a request has unknown keys {names}; known are {', '.join(known)}{hint}")
        if is_messages(text):
            if given := [name for name in ("system", "history") if options.get(name)]:
                raise PromptError(f"{given[0]} and a list of messages were given; expected it as one of the messages")
            media = {name: options.pop(name) for name in ("images", "audios") if name in options}
            options.update(read_messages(cast("Sequence[Any]", text), **media))
            text = options.pop("text")
        output = OutputFormat.of(**{name: options.pop(name) for name in _FORMATS if name in options})
        if output is not None:
            if options.get("output") is not None:
                raise PromptError(f"output and one of {', '.join(_FORMATS)} are both given; leave out one")
            options["output"] = output
        chosen = {name: value for name, value in options.items() if name in sampling}
        rest = {name: value for name, value in options.items() if name in own}
        if chosen:
            base = rest.pop("sampling", SamplingParams())
            if not isinstance(base, SamplingParams):
                raise wrong("sampling", base, "SamplingParams")
            rest["sampling"] = replace(base, **chosen)
        return cls(cast("Content", text), **rest)


def _check_tool_choice(choice: Any, *, has_tools: bool) -> None:
    expected = 'none, auto, required, {"name": ...} or {"allowed": [names], "mode": "auto" or "required"}'
    if isinstance(choice, Mapping):
        allowed = choice.get("allowed")
        is_list = isinstance(allowed, Sequence) and not isinstance(allowed, str | bytes)
        named = choice.keys() == {"name"} and isinstance(choice["name"], str)
        some = choice.keys() == {"allowed", "mode"} and is_list and choice["mode"] in ("auto", "required")
        if not named and not (some and allowed and all(isinstance(name, str) for name in allowed)):
            raise wrong("tool_choice", choice, expected)
    elif not isinstance(choice, str) or choice not in ("none", "auto", "required"):
        raise wrong("tool_choice", choice, expected)
    if not has_tools and choice not in ("none", "auto"):
        raise wrong("tool_choice", choice, "tools to choose from, which the request does not have")


def _names(kind: type[Request] | type[SamplingParams]) -> set[str]:
    return {field.name for field in fields(kind)}


@dataclass(frozen=True)
class Usage:
    """Tokens of a reply: of the prompt (media included), generated (the stop token included), and how many of the
    prompt's were not computed again, as an earlier row had begun alike. Equality passes over the last."""

    prompt_tokens: int
    new_tokens: int
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its natural log-probability at temperature 1 and without penalties, and the most probable
    tokens in its place with theirs, the most probable first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """What the model answered.

    Attributes:
        text: the answer; tool calls stand in it as ``<|tool_call|>[...]<|/tool_call|>``.
        token_ids: what was generated, without the token that ended it.
        route: the adapter and audio projector that answered.
        finish_reason: "stop" (a stop token or string), "length", "tool_calls" or "cancelled" (then the text is what
            came until then).
        avg_logprob: mean natural log-probability of the generated tokens, at temperature 1. Rounding in it depends on
            the batch, so equality passes it over.
        usage: token counts.
        tool_calls: the calls in ``text``, parsed: mappings with "name" and "arguments".
        logprobs: of each of ``token_ids``, if ``SamplingParams.logprobs`` asks for them.
        alternatives: the other replies, where ``SamplingParams.n`` asks for several.
    """

    text: str
    token_ids: tuple[int, ...]
    route: Route
    finish_reason: str
    avg_logprob: float = field(compare=False)
    usage: Usage
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False)
    alternatives: tuple[Reply, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

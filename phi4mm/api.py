"""Phi4MM: the one class most users meet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack

import torch

from phi4mm.adapters import Adapters
from phi4mm.checkpoint import save_checkpoint
from phi4mm.content import Content
from phi4mm.devices import DeviceInfo, describe, prepare, resolve_device
from phi4mm.engine.client import Client, all_or_errors
from phi4mm.engine.core import Core
from phi4mm.engine.encoders import Encoders
from phi4mm.engine.engine import EngineStats
from phi4mm.engine.handle import Handle
from phi4mm.engine.memory import cache_tokens
from phi4mm.engine.merge import MergedLinear, unmerge
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.prepack import PrepackedLinear
from phi4mm.engine.quantize import QuantizedLinear
from phi4mm.engine.runner import MakeRunner, ModelRunner
from phi4mm.engine.threads import plan_threads, tower_thread
from phi4mm.errors import CheckpointError, Phi4MMError, PromptError
from phi4mm.inputs.audio import stream_audio
from phi4mm.inputs.processor import Processor, Row
from phi4mm.inputs.prompt import speech_prompt
from phi4mm.inputs.source import source_name
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.loading import load
from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.options import ChatOptions, DecodingOptions
from phi4mm.transcription.clips import speech_request, transcripts
from phi4mm.transcription.options import SpeechOptions, TranscribeOptions
from phi4mm.transcription.transcriber import Transcription
from phi4mm.types import Reply, Request, Transcript
from phi4mm.validate import (
    check_bool,
    check_choice,
    check_known,
    check_path,
    check_sequence,
    check_text,
    check_whole,
    is_whole,
    wrong,
)

_Result = TypeVar("_Result")

Text = Content | Sequence[Mapping[str, Any]]  # the user's text, or a list of messages
AnyRequest = Request | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Phi4MM:
    """Phi-4-multimodal with its processor and its engine. Make one with ``from_pretrained``.

    It may be used from many threads at once: all calls are clients of one engine, a thread that starts with the first
    of them, and their rows share its steps. ``close()`` ends it, as do the end of a ``with`` block and of the program;
    or it ends once neither the model nor a handle or stream of it is referred to.

    Args:
        model: in evaluation mode.
        tokenizer_file: ``tokenizer.json``.
        options: the bounds of the engine.
        make_runner: of the model and the number of tokens that the KV cache holds; in the engine's thread.
        info: of what the model runs on.

    Attributes:
        model: the network; ``model(batch)`` gives logits [rows, tokens, vocabulary].
        processor: requests to a batch; ``processor(requests)``.
        adapters: the LoRA adapters: ``names``, ``load(name, folder)``, ``unload(name)``, while rows run.
        device_info: device, precision, processor, and why they were chosen.
    """

    def __init__(
        self,
        model: Phi4MMModel,
        tokenizer_file: Path,
        *,
        options: EngineOptions | None = None,
        make_runner: MakeRunner = ModelRunner,
        info: DeviceInfo | None = None,
    ) -> None:
        self.model = model
        self.tokenizer_file = tokenizer_file
        prepare(model.device)
        self.device_info = info or describe(model.device, model.dtype, prepacked=False, why="as the model was made")
        self.processor = Processor(model.config, Tokenizer(tokenizer_file), lambda: model.adapters)
        bounds = options or EngineOptions.on(model.device)

        def make_core(num_threads: int) -> Core:
            plan = plan_threads(model, num_threads)
            torch.set_num_threads(plan.decoder)  # of this thread: each has a setting of its own
            runner = make_runner(model, cache_tokens(model, bounds))
            return Core(runner, Encoders(model, bounds), bounds, tower_thread(plan))

        self._client = Client(
            model,
            self.processor,
            make_core,
            stop_token_ids=model.config.decoder.stop_token_ids,
            read_ahead_bytes=bounds.read_ahead_bytes,
        )
        self.adapters = Adapters(model, self._client.between_steps, self._client.without_users)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        merge: str | None = None,
        prepack: bool | Literal["auto"] = "auto",
        compile: bool = False,
        revision: str | None = None,
        cache_tokens: int | None = None,
        max_rows: int = EngineOptions.max_rows,
        options: EngineOptions | None = None,
        **deprecated: Any,
    ) -> Phi4MM:
        """Load a checkpoint.

        Args:
            source: ``None`` for the bundled checkpoint, a folder, or a hub id such as
                ``"microsoft/Phi-4-multimodal-instruct"`` (safetensors only; downloaded once).
            device: ``"auto"`` takes a GPU where there is one; or any torch device.
            dtype: ``"auto"`` takes what is fastest on the device and fits into memory (see ``device_info``); or
                "float32", "bfloat16", "float16", or a torch dtype.
            quantize: "int8" or "int4" stores the decoder's linears in as many bits, on the CPU; adapters, towers,
                projectors and embedding stay as they are. Decoding reads less; long prompts become slower.
            merge: an adapter to merge into a copy of the decoder's weights, for a run of rows that all take it; rows of
                other routes are still right. ``model.unmerge()`` drops the copy.
            prepack: lay the decoder's linears out in the order of the CPU's kernels, in bfloat16: decoding is faster,
                and the same to the bit. "auto" does so where the processor has instructions for bfloat16.
            compile: compile decoding (torch.compile, with CUDA graphs on a GPU); the first steps of each size take a
                while. It needs Triton on a GPU, a C++ compiler on a CPU, and weights that are not quantised.
            revision: branch, tag or commit of a hub id.
            cache_tokens: tokens that the KV cache holds, of all rows together; ``None``: a share of the free memory.
            max_rows: the most rows that are decoded together.
            options: all bounds of the engine, instead of the two before.

        A checkpoint in transformers' layout that lacks the folder of an adapter gives a ``UserWarning`` that names it:
        until such an adapter is loaded, images and audio are answered with ``adapter=None`` (the bare decoder) alone.

        Raises:
            CheckpointError: the checkpoint is not available, or its files are wrong.
            Phi4MMError: the device, dtype, quantisation or adapter to merge is not available.
        """
        merge, prepack = _renamed(deprecated, merge, prepack)
        check_path("source", source, or_none=True)
        check_choice("quantize", quantize, ("int8", "int4"), or_none=True)
        check_text("merge", merge, or_none=True)
        check_text("revision", revision, or_none=True)
        check_bool("compile", compile)
        if not isinstance(prepack, str) or prepack != "auto":
            check_bool("prepack", prepack)
        if options is not None and not isinstance(options, EngineOptions):
            raise wrong("options", options, "EngineOptions or None")
        if options is not None and (cache_tokens is not None or max_rows != EngineOptions.max_rows):
            raise PromptError("options= holds cache_tokens and max_rows too; set them there alone")
        if compile and (quantize is not None or prepack is True):
            other = f"quantize={quantize!r}" if quantize is not None else "prepack=True"
            raise Phi4MMError(f"{other} and compile=True do not go together; leave out all but one")
        where = resolve_device(device)
        bounds = options or EngineOptions.on(where, cache_tokens=cache_tokens, max_rows=max_rows)
        loaded = load(
            source,
            device=where,
            dtype=dtype,
            quantize=quantize,
            merge=merge,
            prepack=False if compile else prepack,
            revision=revision,
        )
        from phi4mm.engine.cuda_graphs import fastest_runner

        make_runner = fastest_runner(where, bounds.max_rows, compiled=compile, quantized=quantize is not None)
        return cls(loaded.model, loaded.tokenizer_file, options=bounds, make_runner=make_runner, info=loaded.info)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def config(self) -> Phi4MMConfig:
        """Every size of the model, and the adapters that are loaded now."""
        return self.model.config

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        adapters = ", ".join(self.adapters.names) or "none"
        return f"<Phi4MM, {millions:,.1f} M parameters, adapters: {adapters}, {self.device_info}>"

    def close(self) -> None:
        """End the engine. Each request that has not ended fails with a ``ClosedError``, as do later ones."""
        self._client.close()

    def __enter__(self) -> Phi4MM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def unmerge(self) -> None:
        """Drop what ``merge`` made; the frozen weights are bit for bit what they were."""
        self._client.between_steps(lambda: unmerge(self.model))

    def unfold(self) -> None:
        """Deprecated: ``unmerge``."""
        warnings.warn("Phi4MM.unfold is deprecated; use unmerge", DeprecationWarning, stacklevel=2)
        self.unmerge()

    def drop_caches(self) -> None:
        """Forget what was computed for earlier requests: prefixes in the KV cache and embeddings of media."""
        self._client.engine.call(Core.drop_caches)

    def prepare_grammars(self) -> None:
        """Make ready for structured output and tools now, which the first request that needs it does otherwise; it
        takes about a second with a vocabulary of 200,000."""
        _ = self._client.grammars.tokenizer

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, layout: Literal["phi4mm", "transformers"] = "phi4mm"
    ) -> Path:
        """Write the model, its adapters and tokenizer to a new folder, in our layout or in transformers'.

        Raises:
            Phi4MMError: the model is quantised, merged or prepacked, the folder holds something or cannot be written,
                or the layout is not known.
        """
        check_path("folder", folder)
        check_choice("layout", layout, ("phi4mm", "transformers"))
        if any(isinstance(module, QuantizedLinear | MergedLinear | PrepackedLinear) for module in self.model.modules()):
            raise Phi4MMError("only plain weights can be saved; load the model without quantize=, merge= and prepack=")
        try:
            return save_checkpoint(self.model, folder, tokenizer_file=self.tokenizer_file, layout=layout)
        except OSError as error:
            raise CheckpointError(
                f"{os.fspath(folder)}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error

    def stats(self) -> EngineStats:
        """How many rows run and wait, and how much of the KV cache is in use, as of the engine's last step.

        Raises:
            ClosedError: the model is closed.
        """
        self._client.engine.check_open()
        return self._client.engine.stats

    def submit(self, request: AnyRequest, row: Row | None = None) -> Handle:
        """Queue a request, from any thread or event loop.

        Args:
            request: a request, a mapping with its fields, or a list of messages.
            row: its prompt, where ``processor.row`` has made it already, or token ids of the caller's own; by default
                it is made in another thread.

        Returns:
            A handle: iterate it (``for`` or ``async for``) for the pieces of the text, call ``result()`` or ``await``
            it for the reply, or ``cancel()`` it. What is wrong with the request's media is raised there.

        Raises:
            PromptError: an option or the prompt is bad.
            ClosedError: the model is closed.
        """
        made = Request.of(request)
        return self._client.submit(made) if row is None else self._client.submit_row(made, row)

    def chat(self, text: Text = "", **options: Unpack[ChatOptions]) -> Reply:
        """Answer one request.

        Args:
            text: the user's text; or a list of messages as chat templates take them, with the system message, earlier
                turns and media in it: ``[{"role": "user", "content": [{"type": "image", "image": "cat.png"},
                {"type": "text", "text": "What is it?"}]}]`` (``Request.make``).
            **options: any other field of ``Request`` (images, audios, system, history, tools, adapter, ...) and of
                ``SamplingParams`` (max_new_tokens, temperature, top_p, stop, seed, ...); and what the text must be:
                ``response_format`` (a Pydantic model class, a JSON schema or OpenAI's form), ``regex`` or ``grammar``
                (see docs/structured.md).

        Raises:
            Phi4MMError: an input or option is bad.
        """
        handle = self._begin(Request.make(text, **options))
        with cancelled_if_interrupted(handle):
            return handle.result()

    def _begin(self, request: Request) -> Handle:
        self._client.check(request)
        return self._client.submit_row(request, self.processor.row(request))

    def chat_batch(self, requests: Sequence[AnyRequest], *, batch_size: int = 16) -> list[Reply]:
        """Answer many requests, of any mixture of modalities; each is answered as it would be alone (one that is
        sampled, in float32: see ``SamplingParams.seed``).

        Args:
            requests: requests, mappings with the fields of ``Request`` and ``SamplingParams``, or lists of messages.
            batch_size: the most rows of this call that are decoded together.

        Returns:
            One reply per request, in order.

        Raises:
            PromptError: ``batch_size`` is not a whole number of 1 or more.
            BatchError: some requests are bad; its ``results`` hold the replies to the others.
            ClosedError: the model is or was closed.
        """
        check_whole("batch_size", batch_size, 1)
        check_sequence("requests", requests, "requests")
        made = [_made(request) for request in requests]

        def read(request: Request | Phi4MMError) -> tuple[Request, Row]:
            if isinstance(request, Phi4MMError):
                raise request
            return request, self.processor.row(request)

        choices = [1 if isinstance(one, Phi4MMError) else one.sampling.n for one in made]
        reads = [partial(read, one) for one in made]
        return all_or_errors(self._client.results(reads, batch_size=batch_size, choices=choices))

    def stream(self, text: Text = "", **options: Unpack[ChatOptions]) -> Iterator[str]:
        """Answer one request piece by piece; the pieces together are ``chat``'s text. Arguments as ``chat``.

        A bad input raises here, before the first piece. Closing the iterator ends the request.
        """
        handle = self._begin(Request.make(text, **options))

        def pieces() -> Iterator[str]:
            try:
                yield from handle
            finally:
                handle.cancel()

        return pieces()

    def transcribe(
        self,
        audio: Any,
        *,
        task: str = "transcribe",
        to: str | None = None,
        prompt: str | None = None,
        hotwords: Sequence[str] = (),
        **options: Unpack[TranscribeOptions],
    ) -> Transcript:
        """Transcribe audio of any length: speech is found, cut at silences and decoded piece by piece.

        Args:
            audio: a path, bytes, an open binary file, ``(samples, sampling_rate)`` with samples in [-1, 1], or a row of
                ``datasets`` (``{"array": ..., "sampling_rate": ...}``).
            task: "transcribe", "translate", "transcribe_translate" or "summarize".
            to: the language to translate to, in English ("German").
            prompt: your own wording, instead of the task's.
            hotwords: names and terms that may occur; the prompt lists them.
            **options: the fields of ``SpeechOptions`` (vad, channel, track, max_piece, ...), adapter, and those of
                ``SamplingParams`` but for n and logprobs, which a transcript has no place for.

        Raises:
            AudioError: the audio cannot be read.
            Phi4MMError: another argument is bad.
        """
        return self.transcribe_stream(audio, task=task, to=to, prompt=prompt, hotwords=hotwords, **options).transcript()

    def transcribe_stream(
        self,
        audio: Any,
        *,
        task: str = "transcribe",
        to: str | None = None,
        prompt: str | None = None,
        hotwords: Sequence[str] = (),
        **options: Unpack[TranscribeOptions],
    ) -> Transcription:
        """``transcribe``, segment by segment, while the next pieces are decoded: up to ``batch_size`` together.

        Only some pieces that are read ahead are in memory. Arguments as ``transcribe``; live audio may be handed in as
        an iterator of its consecutive parts, each ``(samples, sampling_rate)``, best with ``batch_size=1``. An option
        that is out of range raises here; audio that cannot be read, when the segment is asked for that meets it.
        """
        text = speech_prompt(task, to, prompt=prompt, hotwords=hotwords)
        speech, decoding = SpeechOptions.split(options, task=task)
        request = speech_request(text, decoding)
        waveforms = stream_audio(audio, channel=speech.channel, track=speech.track)
        clip = speech.part.cut(waveforms, source_name(audio, "audio"))
        return Transcription(self._client, clip, request, speech)

    def transcribe_batch(
        self,
        audios: Sequence[Any],
        *,
        task: str = "transcribe",
        to: str | None = None,
        prompt: str | None = None,
        hotwords: Sequence[str] = (),
        batch_size: int = 16,
        **options: Unpack[DecodingOptions],
    ) -> list[Transcript]:
        """Transcribe many clips, each whole: no search for speech, nothing decoded twice.

        For clips of up to ``config.front_end.max_seconds``, as corpora have them; arguments as ``transcribe``.

        Raises:
            BatchError: some clips are bad; its ``results`` hold the transcripts of the others.
            PromptError: an option is bad.
        """
        check_whole("batch_size", batch_size, 1)
        if isinstance(audios, tuple) and len(audios) == 2 and is_whole(audios[1]):
            raise PromptError("audios is one (samples, sampling_rate); expected a list of audios: put it into a list")
        check_sequence("audios", audios, "audios, even for a single one")
        check_known(options, DecodingOptions.__annotations__)
        request = speech_request(speech_prompt(task, to, prompt=prompt, hotwords=hotwords), options)
        return all_or_errors(transcripts(self._client, audios, request, batch_size=batch_size))


@contextmanager
def cancelled_if_interrupted(handle: Handle) -> Iterator[None]:
    """Ends a request whose caller is interrupted."""
    try:
        yield
    except BaseException:
        handle.cancel()
        raise


def _made(request: AnyRequest) -> Request | Phi4MMError:
    """A request, or what is wrong with its options."""
    try:
        return Request.of(request)
    except Phi4MMError as error:
        return error


def _renamed(
    deprecated: dict[str, Any], merge: str | None, prepack: bool | Literal["auto"]
) -> tuple[str | None, bool | Literal["auto"]]:
    """``merge`` and ``prepack``, which were called ``fold`` and ``pack``."""
    unknown = deprecated.keys() - {"fold", "pack"}
    if unknown:
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    for old, new in (("fold", "merge"), ("pack", "prepack")):
        if old in deprecated:
            warnings.warn(f"{old}= is deprecated; use {new}=", DeprecationWarning, stacklevel=3)
    return deprecated.get("fold", merge), deprecated.get("pack", prepack)

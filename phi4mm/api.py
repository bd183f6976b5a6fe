"""Phi4MM: the one class most users meet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import torch

from phi4mm.checkpoint import load_checkpoint, save_checkpoint
from phi4mm.engine.cuda_graphs import CompiledRunners
from phi4mm.engine.engine import Generation, MakeRunner
from phi4mm.engine.merge import MergedLinear, unmerge
from phi4mm.engine.merge import merge as merge_adapter
from phi4mm.engine.prepack import PrepackedLinear, prepack_decoder
from phi4mm.engine.quantize import QuantizedLinear, quantize_decoder
from phi4mm.engine.runner import ModelRunner
from phi4mm.errors import BatchError, Phi4MMError, PromptError
from phi4mm.inputs.audio import load_audio, stream_audio
from phi4mm.inputs.processor import Processor, Row
from phi4mm.inputs.prompt import speech_prompt, with_hotwords
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.pipeline import Prepare, answer_all, answer_of, sampling_of
from phi4mm.transcription.options import SpeechOptions, TranscribeOptions
from phi4mm.transcription.transcriber import Transcription
from phi4mm.types import DecodingOptions, Reply, Request, RequestOptions, Segment, Transcript

_Result = TypeVar("_Result")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Phi4MM:
    """Phi-4-multimodal with its processor. Make one with ``from_pretrained``.

    Attributes:
        model: the network; ``model(batch)`` gives logits [rows, tokens, vocabulary].
        processor: requests to a batch; ``processor(requests)``.
    """

    def __init__(self, model: Phi4MMModel, tokenizer_file: Path, *, make_runner: MakeRunner = ModelRunner) -> None:
        self.model = model
        self._make_runner = make_runner
        self.tokenizer_file = tokenizer_file
        self.processor = Processor(model.config, Tokenizer(tokenizer_file))

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        merge: str | None = None,
        prepack: bool = False,
        compile: bool = False,
        revision: str | None = None,
    ) -> Phi4MM:
        """Load a checkpoint.

        Args:
            source: ``None`` for the bundled checkpoint, a folder, or a hub id such as
                ``"microsoft/Phi-4-multimodal-instruct"`` (safetensors only; downloaded once).
            device: ``"auto"`` takes a GPU where there is one; or any torch device.
            dtype: ``"auto"`` keeps the checkpoint's own; or "float32", "bfloat16", "float16", or a torch dtype.
            quantize: "int8" or "int4" stores the decoder's linears in as many bits, on the CPU; adapters, towers,
                projectors and embedding stay as they are. Decoding reads less; long prompts become slower.
            merge: an adapter to merge into a copy of the decoder's weights, for a run of rows that all take it; rows of
                other routes are still right. ``model.unmerge()`` drops the copy.
            prepack: lay the decoder's linears out in the order of the CPU's kernels, in bfloat16: decoding is faster,
                and the same to the bit.
            compile: compile decoding (torch.compile, with CUDA graphs on a GPU); the first steps of each size take a
                while. It needs Triton on a GPU, a C++ compiler on a CPU, and weights neither quantised nor prepacked.
            revision: branch, tag or commit of a hub id.

        Raises:
            CheckpointError: the checkpoint is not available, or its files are wrong.
            Phi4MMError: the device, dtype, quantisation or adapter to merge is not available.
        """
        kinds = {f"quantize={quantize!r}": quantize is not None, "prepack=True": prepack, "compile=True": compile}
        chosen = [kind for kind, wanted in kinds.items() if wanted]
        if len(chosen) > 1:
            raise Phi4MMError(f"{' and '.join(chosen)} do not go together; leave out all but one")
        checkpoint = load_checkpoint(source, device=_device(device), dtype=_dtype(dtype), revision=revision)
        if quantize is not None:
            quantize_decoder(checkpoint.model, quantize)
        if prepack:
            prepack_decoder(checkpoint.model)
        if merge is not None:
            merge_adapter(checkpoint.model, merge)
        make_runner = CompiledRunners() if compile else ModelRunner
        return cls(checkpoint.model, checkpoint.tokenizer_file, make_runner=make_runner)

    def unmerge(self) -> None:
        """Drop what ``merge`` made; the frozen weights are bit for bit what they were."""
        unmerge(self.model)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, layout: Literal["phi4mm", "transformers"] = "phi4mm"
    ) -> Path:
        """Write the model, its adapters and tokenizer to a new folder, in our layout or in transformers'.

        Raises:
            Phi4MMError: the model is quantised, merged or prepacked.
        """
        if any(isinstance(module, QuantizedLinear | MergedLinear | PrepackedLinear) for module in self.model.modules()):
            raise Phi4MMError("only plain weights can be saved; load the model without quantize=, merge= and prepack=")
        return save_checkpoint(self.model, folder, tokenizer_file=self.tokenizer_file, layout=layout)

    def chat(self, text: str = "", **options: Unpack[RequestOptions]) -> Reply:
        """Answer one request.

        Args:
            text: the user's text.
            **options: any other field of ``Request``: images, audios, system, history, tools, adapter,
                max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, seed.

        Raises:
            Phi4MMError: an input or option is bad.
        """
        [reply] = self._answer([partial(self._prepare, Request(text, **options))], batch_size=1)
        if isinstance(reply, Phi4MMError):
            raise reply
        return reply

    def chat_batch(self, requests: Sequence[Request | Mapping[str, Any]], *, batch_size: int = 16) -> list[Reply]:
        """Answer many requests, of any mixture of modalities; each is answered as it would be alone.

        Args:
            requests: requests, or mappings with the fields of ``Request``.
            batch_size: the most rows decoded together.

        Returns:
            One reply per request, in order.

        Raises:
            BatchError: some requests are bad; its ``results`` hold the replies to the others.
        """
        jobs = [partial(self._prepare, request) for request in requests]
        return _all_or_errors(self._answer(jobs, batch_size=batch_size))

    def stream(self, text: str = "", **options: Unpack[RequestOptions]) -> Iterator[str]:
        """Answer one request piece by piece; the pieces together are ``chat``'s text. Arguments as ``chat``.

        A bad input raises here, before the first piece.
        """
        request = Request(text, **options)
        row = self.processor.row(request)
        return self._pieces(request, row)

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
        """What is said in audio of any length: speech is found, cut at silences and decoded piece by piece.

        Args:
            audio: a path, bytes, an open binary file, or ``(samples, sampling_rate)`` with samples in [-1, 1].
            task: "transcribe", "translate", "transcribe_translate" or "summarize".
            to: the language to translate to, in English ("German").
            prompt: your own wording, instead of the task's.
            hotwords: names and terms that may occur; the model is told of them in the prompt.
            **options: the fields of ``SpeechOptions`` (vad, channel, max_piece, ...) and adapter, max_new_tokens,
                temperature, top_p, top_k, repetition_penalty, stop, seed.

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
        """``transcribe``, segment by segment: each is decoded when it is asked for, ``batch_size`` pieces at a time.

        Only what is being decoded is in memory. Arguments as ``transcribe``; live audio may be handed in as an
        iterator of its consecutive parts, each ``(samples, sampling_rate)``, best with ``batch_size=1``. An option
        that is out of range raises here; audio that cannot be read, when the segment is asked for that meets it.
        """
        speech, decoding = SpeechOptions.split(options, task=task)
        text = with_hotwords(speech_prompt(task, to) if prompt is None else prompt, hotwords)
        return Transcription(self, stream_audio(audio, channel=speech.channel), Request(text, **decoding), speech)

    def transcribe_batch(
        self,
        audios: Sequence[Any],
        *,
        task: str = "transcribe",
        to: str | None = None,
        prompt: str | None = None,
        batch_size: int = 16,
        **options: Unpack[DecodingOptions],
    ) -> list[Transcript]:
        """What is said in many clips, each handed to the model whole: no search for speech, nothing decoded twice.

        For clips of up to ``config.front_end.max_seconds``, as corpora have them; arguments as ``transcribe``.

        Raises:
            BatchError: some clips are bad; its ``results`` hold the transcripts of the others.
        """
        request = Request(speech_prompt(task, to) if prompt is None else prompt, **options)
        durations: dict[int, float] = {}

        def prepare(index: int) -> tuple[Request, Row]:
            waveform = load_audio(audios[index])
            durations[index] = waveform.duration
            return self._prepare(replace(request, audios=[(waveform.samples, waveform.sampling_rate)]))

        replies = self._answer([partial(prepare, index) for index in range(len(audios))], batch_size=batch_size)
        return _all_or_errors(
            [
                reply if isinstance(reply, Phi4MMError) else _transcript(reply, durations[index])
                for index, reply in enumerate(replies)
            ]
        )

    def _prepare(self, request: Request | Mapping[str, Any]) -> tuple[Request, Row]:
        request = Request.of(request)
        return request, self.processor.row(request)

    def _answer(self, jobs: Sequence[Prepare], *, batch_size: int) -> list[Reply | Phi4MMError]:
        if batch_size < 1:
            raise PromptError(f"batch_size is {batch_size}; expected 1 or more")
        return answer_all(self.model, self.processor, jobs, batch_size=batch_size, make_runner=self._make_runner)

    def _pieces(self, request: Request, row: Row) -> Iterator[str]:
        answer = answer_of(request, row, self.model, self.processor)
        batch, samplings = self.processor.collate([row]), [sampling_of(request, self.model)]
        for step in Generation(self.model, batch, samplings, make_runner=self._make_runner):
            if piece := answer.push(step):
                yield piece
            if answer.finished:
                return


def _transcript(reply: Reply, duration: float) -> Transcript:
    said = reply.text.strip()
    return Transcript(said, (Segment(0.0, duration, said),) if said else (), duration)


def _all_or_errors(results: Sequence[_Result | Phi4MMError]) -> list[_Result]:
    """The results, or a ``BatchError`` that holds them where some of them failed."""
    good = [None if isinstance(result, Phi4MMError) else result for result in results]
    errors = {index: result for index, result in enumerate(results) if isinstance(result, Phi4MMError)}
    if errors:
        raise BatchError(good, errors)
    return [result for result in good if result is not None]


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Phi4MMError(f"device {str(name)!r} is not available here ({reason}); try 'auto' or 'cpu'") from error
    return device


def _dtype(name: str | torch.dtype) -> torch.dtype | None:
    if isinstance(name, torch.dtype):
        if name.is_floating_point:
            return name
    elif name == "auto":
        return None
    elif name in _DTYPES:
        return _DTYPES[name]
    raise Phi4MMError(f"dtype is {str(name)!r}; expected 'auto' or one of {', '.join(_DTYPES)}")

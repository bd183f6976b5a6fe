"""Pieces to segments: decoded together, and decoded again at a higher temperature where the result is suspect."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from phi4mm.engine.client import Client
from phi4mm.engine.handle import Handle
from phi4mm.engine.row import Group
from phi4mm.errors import Phi4MMError
from phi4mm.inputs.audio import Waveform
from phi4mm.transcription.alignment import align_words
from phi4mm.transcription.detector import SpeechDetector
from phi4mm.transcription.frames import frames
from phi4mm.transcription.options import SpeechOptions
from phi4mm.transcription.pieces import Piece, cut
from phi4mm.types import Reply, Request, Segment, Transcript, Word

_AHEAD = 4  # times ``batch_size`` pieces that are read or decoded at a time


@dataclass(frozen=True)
class Attempt:
    """One decoding of a piece.

    Attributes:
        text: what was said.
        temperature: at which it was decoded.
        avg_logprob: mean log-probability of its tokens.
        token_ids: of the text.
    """

    text: str
    temperature: float
    avg_logprob: float
    token_ids: tuple[int, ...]

    @property
    def compression_ratio(self) -> float:
        """How many times shorter zlib makes the text; repetition makes it high."""
        return compression_ratio(self.text)

    def fails(self, options: SpeechOptions) -> bool:
        """Whether it repeats itself or is improbable."""
        return (
            self.compression_ratio > options.compression_ratio_threshold or self.avg_logprob < options.logprob_threshold
        )


@dataclass(frozen=True)
class Ended:
    """That an audio was read to its end and all its segments were given; or why it could not be."""

    failure: Phi4MMError | OSError | None = None


class Transcription:
    """The segments of one audio, in order, decoded a few pieces ahead of what is asked for.

    Args:
        client: of the engine.
        waveforms: the consecutive parts of the audio, or of the clip that the options name, at one of the model's two
            rates.
        request: the instruction and how to decode it; its audio is filled in.
        options: how to find speech and when to decode again.

    Attributes:
        duration: seconds of audio (of the clip, if one is asked for) that were read so far; at the end, all.
    """

    def __init__(self, client: Client, waveforms: Iterable[Waveform], request: Request, options: SpeechOptions) -> None:
        self._client = client
        self._waveforms = waveforms
        self._request = request
        self._options = options
        self._temperatures = options.temperatures(request.sampling.temperature)
        self._segments = self._run()
        self.duration = 0.0

    def __iter__(self) -> Transcription:
        return self

    def __next__(self) -> Segment:
        return next(self._segments)

    def close(self) -> None:
        """End it: what is decoded ahead is cancelled, and no more segments come."""
        self._segments.close()

    def transcript(self) -> Transcript:
        """All segments that are left, together."""
        segments = tuple(self)
        return Transcript.of(segments, self.duration)

    def words(self) -> Iterator[str]:
        """Instead of segments the text as it is decoded, in parts that together are the transcript.

        Each piece is decoded on its own and once: what has been shown cannot be taken back.
        """
        begun = False
        for piece in self.pieces():
            start = True  # of the piece: nothing of it has been given yet
            handle = self._client.submit(replace(self._request, audios=[(piece.samples, piece.sampling_rate)]))
            try:
                for part in handle:
                    part = part.lstrip() if start else part
                    if part:
                        yield f" {part}" if start and begun else part
                        start, begun = False, True
            finally:
                handle.cancel()

    def _run(self) -> Generator[Segment, None, None]:
        for _, event in together([self]):
            if isinstance(event, Segment):
                yield event
            elif event.failure is not None:
                raise event.failure

    @property
    def batch_size(self) -> int:
        """The most pieces decoded together."""
        return self._options.batch_size

    def pieces(self) -> Iterator[Piece]:
        """What is handed to the model, without decoding it."""
        options = self._options
        pieces = cut(
            frames(self._counted(), SpeechDetector() if options.vad else None),
            max_piece=options.max_piece or self._client.model.config.front_end.max_seconds,
            min_silence=options.min_silence,
            threshold=options.vad_threshold,
            judge=options.vad,
        )
        return (piece.later(options.part.start) for piece in pieces)

    def _counted(self) -> Iterator[Waveform]:
        for waveform in self._waveforms:
            self.duration += waveform.duration
            yield waveform

    def begin(self, piece: Piece, number: int, group: Group, *, logprobs: int | None = None) -> Handle:
        """Decode a piece for the ``number``-th time, counted from 0, as one of a group; ``logprobs`` are reported by
        the handle, as ``SamplingParams.logprobs``."""
        sampling = self._request.sampling
        # A retry is seeded, so that the same file gives the same transcript again.
        seed = number if number and sampling.seed is None else sampling.seed
        sampling = replace(sampling, temperature=self._temperatures[number], seed=seed, logprobs=logprobs)
        audios = [(piece.samples, piece.sampling_rate)]
        return self._client.submit(replace(self._request, audios=audios, sampling=sampling), group)

    def attempt(self, reply: Reply, piece: Piece, number: int) -> Attempt:
        """What a decoding gave: without its words where there is probably no speech and they are improbable."""
        options = self._options
        attempt = Attempt(reply.text.strip(), self._temperatures[number], reply.avg_logprob, reply.token_ids)
        no_speech = options.vad and 1.0 - piece.speech > options.no_speech_threshold
        silent = no_speech and attempt.avg_logprob < options.logprob_threshold
        return replace(attempt, text="") if silent else attempt

    def is_settled(self, attempt: Attempt, number: int) -> bool:
        """Whether a piece is not to be decoded again after this."""
        return not (attempt.text and attempt.fails(self._options)) or number + 1 >= len(self._temperatures)

    def best(self, attempts: list[Attempt]) -> Attempt:
        """The last where it does not fail; where all do, the least repetitive, then the most probable."""
        if not (attempts[-1].text and attempts[-1].fails(self._options)):
            return attempts[-1]
        bound = self._options.compression_ratio_threshold
        return min(attempts, key=lambda attempt: (max(attempt.compression_ratio, bound), -attempt.avg_logprob))

    def segment(self, piece: Piece, attempt: Attempt) -> Segment:
        """What was said in a piece of this audio."""
        return Segment(
            start=round(piece.start, 3),
            end=round(piece.end, 3),
            text=attempt.text,
            avg_logprob=attempt.avg_logprob,
            compression_ratio=attempt.compression_ratio,
            no_speech_prob=1.0 - piece.speech if self._options.vad else None,
            temperature=attempt.temperature,
            words=self._timed(piece, attempt) if self._options.word_timestamps else None,
        )

    def _timed(self, piece: Piece, attempt: Attempt) -> tuple[Word, ...] | None:
        """The words of a piece, in seconds from the audio's start."""
        request = replace(self._request, audios=[(piece.samples, piece.sampling_rate)])
        speech = (piece.start - piece.offset, piece.end - piece.offset)
        words = align_words(self._client, request, attempt.token_ids, speech)
        begin, end = round(piece.start, 3), round(piece.end, 3)

        def at(seconds: float) -> float:
            return min(max(round(piece.offset + seconds, 3), begin), end)  # which rounding may leave

        return words and tuple(Word(word.text, at(word.start), at(word.end)) for word in words)


@dataclass(eq=False)
class _Task:
    """One piece, from its first decoding to its segment."""

    audio: _Audio
    piece: Piece
    handle: Handle
    attempts: list[Attempt] = field(default_factory=list)
    segment: Segment | None = None
    settled: bool = False


@dataclass(eq=False)
class _Audio:
    """One of several that are transcribed together: its pieces whose segments were not given away, and its end."""

    run: Transcription
    tasks: deque[_Task] = field(default_factory=deque)
    end: Ended | None = None


def together(runs: Iterable[Transcription]) -> Iterator[tuple[Transcription, Segment | Ended]]:
    """Transcribe many audios, whose pieces are decoded together: each one's segments, then its ``Ended``, in order.

    While pieces are decoded the next ones are read; a piece that is to be decoded again is so at once. What is wrong
    with one audio ends that one alone.

    Args:
        runs: of one model; each is taken when the one before was read to its end.
    """
    audios = deque[_Audio]()
    finished = SimpleQueue[_Task]()
    going: set[_Task] = set()
    group = Group()

    def begin(task: _Task) -> None:
        going.add(task)
        task.handle.when_done(lambda: finished.put(task))

    def settle(task: _Task) -> None:
        """Take a decoding that has ended, and decode again or make the segment."""
        going.discard(task)
        run, number = task.audio.run, len(task.attempts)
        if task.audio.end is not None and task.audio.end.failure is not None:
            return
        try:
            task.attempts.append(run.attempt(task.handle.result(), task.piece, number))
            if not run.is_settled(task.attempts[-1], number):
                task.handle = run.begin(task.piece, number + 1, group)
                begin(task)
                return
            best = run.best(task.attempts)
            task.segment = run.segment(task.piece, best) if best.text else None
        except (Phi4MMError, OSError) as error:
            while task.audio.tasks[-1] is not task:
                task.audio.tasks.pop().handle.cancel()
            task.audio.tasks.pop()
            task.audio.end = Ended(error)
            return
        task.settled = True

    def known() -> Iterator[tuple[Transcription, Segment | Ended]]:
        while audios:
            first = audios[0]
            while first.tasks and first.tasks[0].settled:
                segment = first.tasks.popleft().segment
                if segment is not None:
                    yield first.run, segment
            if first.end is None or first.tasks:
                return
            yield first.run, first.end
            audios.popleft()

    try:
        for run in runs:
            audio = _Audio(run)
            audios.append(audio)
            group.limit = run.batch_size
            # Pieces are read and encoded ahead; but live audio, one piece at a time, is given as soon as it is there.
            most = run.batch_size * (_AHEAD if run.batch_size > 1 else 1)
            try:
                for piece in run.pieces():
                    task = _Task(audio, piece, run.begin(piece, 0, group))
                    audio.tasks.append(task)
                    begin(task)
                    while len(going) >= most or not finished.empty():
                        settle(finished.get())
                    yield from known()
                    if audio.end is not None:
                        break
            except (Phi4MMError, OSError) as error:
                audio.end = audio.end or Ended(error)
            audio.end = audio.end or Ended()
            yield from known()
        while going:
            settle(finished.get())
            yield from known()
    finally:
        for task in going:
            task.handle.cancel()


def compression_ratio(text: str) -> float:
    """Length of a text over its length as zlib packs it, in UTF-8."""
    encoded = text.encode("utf-8")
    return len(encoded) / len(zlib.compress(encoded))

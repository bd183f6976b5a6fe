"""From clips to rows: one recogniser, loaded on first need, and batches on the clock.

The clock runs from decoded, resampled samples to text, and a batch's time is shared equally among its clips
(open_asr_leaderboard, ``run_eval.py``); loading and warm-up are not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from eval_asr.backends import Recogniser
from eval_asr.clips import Clip
from eval_asr.errors import BackendError, EvalError
from eval_asr.results import Row
from phi4mm.errors import AudioReadError

_LONGEST_REASON = 500  # characters

# Recognises batches, in their order: the rows of each.
TranscribeAll = Callable[[Iterable[list[Clip]]], Iterator[list[Row]]]


@dataclass
class Stopwatch:
    """Seconds that were spent in its ``with`` blocks."""

    seconds: float = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


@dataclass(frozen=True)
class Clock:
    """What a run over one corpus in this process takes for its recogniser."""

    loading: Stopwatch = field(default_factory=Stopwatch)
    recognising: Stopwatch = field(default_factory=Stopwatch)


class LazyRecogniser:
    """A recogniser that is loaded on first need, once, however many corpora are run. Use it in a ``with`` block, at
    whose end the recogniser is closed.

    Args:
        load: loads it; not called where nothing is left to do.
        warmup: batches recognised off the clock once it is loaded, so that compilation and caches are not timed.

    Raises:
        EvalError: ``warmup`` is negative.
    """

    def __init__(self, load: Callable[[], Recogniser], warmup: int) -> None:
        if warmup < 0:
            raise EvalError(f"warmup is {warmup}; expected 0 or more")
        self._load = load
        self._warmup = warmup
        self._loaded: Recogniser | None = None

    def __enter__(self) -> LazyRecogniser:
        return self

    def __exit__(self, *_: object) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close()

    def transcriber(self, language: str, clock: Clock) -> TranscribeAll:
        """What recognises the batches of a corpus, one after another, here, while a thread reads the next one."""

        def transcribe_all(batches: Iterable[list[Clip]]) -> Iterator[list[Row]]:
            batches = iter(batches)
            first = next(batches, None)
            if first is None:
                return
            with ThreadPoolExecutor(max_workers=1) as reader:
                recogniser, loaded = self._with_batch(first, language, clock, reader)

                def load_next() -> list[LoadedClip] | None:
                    batch = next(batches, None)
                    return None if batch is None else load_clips(batch, recogniser.sampling_rate)

                upcoming: list[LoadedClip] | None = loaded
                while upcoming is not None:
                    following = reader.submit(load_next)
                    with clock.recognising:
                        rows = recognise(recogniser, upcoming, language)
                    yield rows
                    upcoming = following.result()

        return transcribe_all

    def _with_batch(
        self, batch: list[Clip], language: str, clock: Clock, reader: ThreadPoolExecutor
    ) -> tuple[Recogniser, list[LoadedClip]]:
        """The recogniser and a corpus's first batch for it, which is read while the recogniser loads."""
        if self._loaded is not None:
            return self._loaded, load_clips(batch, self._loaded.sampling_rate)
        with clock.loading:
            from phi4mm.inputs.audio import SAMPLING_RATE  # here: two threads must not import torch at once

            reading = reader.submit(load_clips, batch, SAMPLING_RATE)  # what most recognisers want
            self._loaded = self._load()
        loaded = reading.result()
        if self._loaded.sampling_rate != SAMPLING_RATE:
            loaded = load_clips(batch, self._loaded.sampling_rate)
        with clock.loading:
            warm_up(self._loaded, loaded, language, self._warmup)
        return self._loaded, loaded


def warm_up(recogniser: Recogniser, loaded: list[LoadedClip], language: str, times: int) -> None:
    """Recognise a batch without keeping anything, so that compilation and caches are not on the clock."""
    for _ in range(times):
        recognise(recogniser, loaded, language)


@dataclass(frozen=True)
class LoadedClip:
    """A clip with its samples [n] and its duration in seconds, or with why they are not available."""

    clip: Clip
    samples: np.ndarray
    duration: float = 0.0
    error: Exception | None = None


def load_clips(clips: list[Clip], sampling_rate: int) -> list[LoadedClip]:
    """Decode and resample a batch."""
    loaded = []
    for clip in clips:
        try:
            loaded.append(LoadedClip(clip, *clip.load(sampling_rate)))
        except Exception as error:  # whatever a damaged file makes a library raise
            loaded.append(LoadedClip(clip, np.zeros(0, np.float32), error=error))
    return loaded


def recognise(recogniser: Recogniser, loaded: list[LoadedClip], language: str) -> list[Row]:
    """Rows of a loaded batch, in order, on the clock.

    Raises:
        BackendError: the recogniser does not take the language; any other error is that of a clip, and goes in its row.
    """
    rows = iter(_recognise(recogniser, [item for item in loaded if item.error is None], language))
    return [next(rows) if item.error is None else _row(item, item.error) for item in loaded]


def _recognise(recogniser: Recogniser, loaded: list[LoadedClip], language: str, spent: float = 0.0) -> list[Row]:
    """Rows of clips, on each of which ``spent`` seconds went already in a batch that failed."""
    if not loaded:
        return []
    started = time.perf_counter()
    try:
        texts = recogniser.transcribe([item.samples for item in loaded], language)
        if len(texts) != len(loaded):
            raise ValueError(f"{recogniser.name} gave {len(texts)} texts for {len(loaded)} clips")
    except BackendError:
        raise
    except Exception as error:
        failure = error
    else:
        seconds = spent + (time.perf_counter() - started) / len(loaded)
        return [_row(item, text, seconds) for item, text in zip(loaded, texts, strict=True)]
    seconds = spent + (time.perf_counter() - started) / len(loaded)
    if len(loaded) == 1:
        return [_row(loaded[0], failure, seconds)]
    # One clip must not take its batch with it.
    tqdm.write(f"a batch of {len(loaded)} failed ({_reason(failure)}); its clips go one by one", file=sys.stderr)
    return [row for item in loaded for row in _recognise(recogniser, [item], language, seconds)]


def is_read_error(row: Row) -> bool:
    """Whether a row's clip could not be read because of an input/output error, which may pass."""
    return row.error is not None and row.error.startswith(f"{AudioReadError.__name__}: ")


def _row(item: LoadedClip, result: str | Exception, seconds: float = 0.0) -> Row:
    clip = item.clip
    text, reason = (result, None) if isinstance(result, str) else ("", _reason(result))
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair could not be written
    return Row(clip.audio_filepath, item.duration, seconds, clip.text, text, reason, clip.parent_id, clip.chunk_index)


def _reason(error: Exception) -> str:
    """An error in one line of at most ``_LONGEST_REASON`` characters."""
    reason = " ".join(f"{type(error).__name__}: {error}".split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."

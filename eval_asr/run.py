"""Run a recogniser over a corpus: batches sorted by length, each row kept at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from eval_asr.clips import Clip, Source
from eval_asr.errors import EvalError, ResultsError, SourceError
from eval_asr.progress import RunningScore
from eval_asr.recognise import Clock, LazyRecogniser, TranscribeAll
from eval_asr.results import Row, RowWriter, Timing

# A streamed corpus is sorted within windows of this many batches, which are held in memory.
WINDOW_BATCHES = 32


@dataclass(frozen=True)
class RunOptions:
    """How a corpus is run.

    Attributes:
        batch_size: clips recognised together.
        limit: run this many clips only; ``None`` for all.
        seed: with ``limit``, draw the clips at random; ``None`` takes the first ones.
        progress: show a bar with the word error rate so far.
    """

    batch_size: int = 16
    limit: int | None = None
    seed: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EvalError(f"{name} is {value}; expected {least} or more")


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        num_rows: rows in the manifest.
        num_kept: those that were there before.
        num_failed: those with an error.
        audio_seconds, transcription_seconds: of the rows without one.
        timing: where this run's time went.
        first_error: of the rows, with the clip's name.
    """

    num_rows: int
    num_kept: int
    num_failed: int
    audio_seconds: float
    transcription_seconds: float
    timing: Timing
    first_error: str | None

    def sentence(self) -> str:
        speed = f"{self.audio_seconds / self.transcription_seconds:.2f}" if self.transcription_seconds else "unknown"
        kept = f" ({self.num_kept} were there)" if self.num_kept else ""
        failed = f", {self.num_failed} with an error (the first: {self.first_error})" if self.num_failed else ""
        return f"{self.num_rows} rows{kept}{failed}, RTFx {speed}; {self.timing.sentence()}"


def run_set(
    recogniser: LazyRecogniser,
    source: Source,
    manifest: Path,
    options: RunOptions,
    transcribe_all: TranscribeAll | None = None,
) -> RunSummary:
    """Run a corpus, or what is left of it, into a manifest. The folder is to be ``locked`` by the caller.

    A batch that was written in part is recognised whole again and its missing rows are added, so that every clip is
    recognised in the same company, and the file is that of a run left alone.

    Args:
        recogniser: of this process; it is not loaded where nothing is left to do.
        transcribe_all: recognises the batches elsewhere instead, as ``eval_asr.scale`` does.

    Raises:
        ResultsError: the manifest cannot be written, or holds rows of another corpus.
        Phi4MMError: the corpus or the recogniser cannot be loaded.
    """
    started = time.perf_counter()
    clock = Clock()
    clips = select(source.open_clips(), options.limit, options.seed)
    batches = in_batches(clips, options.batch_size, windowed=source.streamed)
    with RowWriter(manifest) as writer:
        done = {row.audio_filepath for row in writer.rows}
        total = options.limit
        if isinstance(clips, list):
            total = len(clips)
            _check_same_corpus(writer, {clip.audio_filepath for clip in clips})
        with clock.loading:
            score = RunningScore(source.language) if options.progress else None
        rows = list(writer.rows)
        written = set(done)
        pending = (batch for batch in batches if any(clip.audio_filepath not in done for clip in batch))
        elsewhere = transcribe_all is not None
        transcribe_all = transcribe_all or recogniser.transcriber(source.language, clock)
        with _bar(source, total, score, writer.rows) as bar:
            for batch_rows in transcribe_all(pending):
                new = [row for row in batch_rows if row.audio_filepath not in written]
                for row in new:
                    writer.append(row)
                written.update(row.audio_filepath for row in new)
                rows += new
                bar(new)
    return RunSummary(
        num_rows=len(rows),
        num_kept=len(done),
        num_failed=sum(row.error is not None for row in rows),
        audio_seconds=sum(row.duration for row in rows if row.error is None),
        transcription_seconds=sum(row.time for row in rows if row.error is None),
        timing=Timing(
            wall_seconds=round(time.perf_counter() - started, 3),
            loading_seconds=None if elsewhere else round(clock.loading.seconds, 3),
            recognising_seconds=None if elsewhere else round(clock.recognising.seconds, 3),
        ),
        first_error=next((f"{row.audio_filepath}: {row.error}" for row in rows if row.error is not None), None),
    )


@contextmanager
def _bar(
    source: Source, total: int | None, score: RunningScore | None, rows: list[Row]
) -> Iterator[Callable[[list[Row]], None]]:
    """A progress bar, to be called with each batch's rows. A thread scores them while the next batch is recognised."""
    if score is None:
        yield lambda new: None
        return
    with tqdm(total=total, initial=len(rows), unit="clip") as bar, ThreadPoolExecutor(max_workers=1) as scorer:
        bar.set_description(f"{source.path} {source.name} {source.split}".replace("  ", " "))
        summary = scorer.submit(score.after, rows)

        def add(new: list[Row]) -> None:
            nonlocal summary
            bar.set_postfix_str(summary.result(), refresh=False)
            bar.update(len(new))
            summary = scorer.submit(score.after, new)

        yield add
        bar.set_postfix_str(summary.result())


def select(clips: Iterable[Clip], limit: int | None, seed: int | None) -> Iterable[Clip]:
    """The clips to run, in the corpus's order: all, the first ``limit``, or with a seed ``limit`` at random.

    The draw is a reservoir (Vitter 1985, algorithm R), so that a streamed corpus passes by once.
    """
    if limit is None:
        return clips
    if seed is None:
        return list(islice(clips, limit))
    generator = random.Random(seed)
    reservoir: list[tuple[int, Clip]] = []
    for place, clip in enumerate(clips):
        if place < limit:
            reservoir.append((place, clip))
        elif (slot := generator.randrange(place + 1)) < limit:
            reservoir[slot] = (place, clip)
    return [clip for _, clip in sorted(reservoir, key=lambda drawn: drawn[0])]


def in_batches(clips: Iterable[Clip], batch_size: int, *, windowed: bool = False) -> Iterator[list[Clip]]:
    """Batches of clips of like length, the longest first, so that memory runs out at once or never.

    The order depends on the corpus alone. ``windowed`` sorts within windows instead of over the whole corpus.
    """
    clips = iter(clips)
    window = batch_size * WINDOW_BATCHES if windowed else None
    while part := list(islice(clips, window)):
        part.sort(key=lambda clip: -clip.claimed_seconds())
        for start in range(0, len(part), batch_size):
            yield part[start : start + batch_size]


def _check_same_corpus(writer: RowWriter, clips: set[str]) -> None:
    foreign = [row.audio_filepath for row in writer.rows if row.audio_filepath not in clips]
    if foreign:
        raise ResultsError(
            f"{writer.manifest}: has rows of clips of another corpus ({foreign[0]!r} and {len(foreign) - 1} more); "
            "name another --out, or the corpus and options of before"
        )


def check_distinct(sources: list[Source]) -> None:
    """Two corpora whose results would go into one file are refused.

    Raises:
        SourceError: there are such.
    """
    seen: dict[tuple[str, str, str], str] = {}
    for source in sources:
        key = (source.path, source.name, source.split)
        if key in seen:
            raise SourceError(f"{source.spec} and {seen[key]} have one name, {' '.join(key)}; run them with two --out")
        seen[key] = source.spec

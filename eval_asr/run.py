"""Run a recogniser over a corpus: batches sorted by length, each row kept at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from eval_asr.clips import Clip, Source
from eval_asr.errors import EvalError, ResultsError, SourceError, short
from eval_asr.progress import RunningScore
from eval_asr.recognise import Clock, LazyRecogniser, TranscribeAll, is_read_error
from eval_asr.records import Timing
from eval_asr.results import Row, RowWriter

RETRY_AFTER = 5.0  # seconds, before clips are read again that an input/output error stopped
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
        num_retried: clips that had failed before, and were tried again.
        num_changed: rows that were there before and whose reference the corpus has changed since.
        num_failed: rows with an error.
        audio_seconds: of the rows without an error.
        transcription_seconds: of all rows.
        timing: where this run's time went.
        first_error: of the rows, with the clip's name.
    """

    num_rows: int
    num_kept: int
    num_retried: int
    num_changed: int
    num_failed: int
    audio_seconds: float
    transcription_seconds: float
    timing: Timing
    first_error: str | None

    def sentence(self) -> str:
        speed = f"{self.audio_seconds / self.transcription_seconds:.2f}" if self.transcription_seconds else "unknown"
        before = [f"{self.num_kept} were there"] if self.num_kept else []
        before += [f"{self.num_retried} tried again after a failure"] if self.num_retried else []
        before += [f"{self.num_changed} with a new reference, as the corpus has changed"] if self.num_changed else []
        failed = (
            f", {self.num_failed} with an error (the first: {short(self.first_error or '', 400)})"
            if self.num_failed
            else ""
        )
        rows = f"{self.num_rows} rows" + (f" ({'; '.join(before)})" if before else "")
        return f"{rows}{failed}, RTFx {speed}; {self.timing.sentence()}"


def run_set(
    recogniser: LazyRecogniser,
    source: Source,
    manifest: Path,
    options: RunOptions,
    transcribe_all: TranscribeAll | None = None,
) -> RunSummary:
    """Run a corpus, or what is left of it, into a manifest. The folder is to be ``locked`` by the caller.

    A batch that was written in part is recognised whole again and its missing rows are added, so that every clip is
    recognised in the same company, and the file is that of a run left alone. Clips that failed are tried again. Rows
    that are kept get the corpus's references of now.

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
    total = len(clips) if isinstance(clips, list) else options.limit
    with RowWriter(manifest) as writer:
        rows = {row.audio_filepath: row for row in writer.rows}
        if isinstance(clips, list):
            _check_same_corpus(manifest, rows, {clip.audio_filepath for clip in clips})
        done = {row.audio_filepath for row in writer.rows if row.error is None}
        with clock.loading:
            score = RunningScore(source.language) if options.progress else None
        work = _Work(in_batches(clips, options.batch_size, windowed=source.streamed), done)
        elsewhere = transcribe_all is not None
        transcribe_all = transcribe_all or recogniser.transcriber(source.language, clock)
        written = set(done)

        with _bar(source, total, score, [row for row in writer.rows if row.error is None]) as bar:

            def write(batches: Iterable[list[Clip]], *, is_last: bool) -> list[Clip]:
                """Recognise batches and write their new rows; returns the clips to be read again, unless it is last."""
                unread = []
                for batch_rows in transcribe_all(batches):
                    new = [row for row in batch_rows if row.audio_filepath not in written]
                    for row in new:
                        writer.append(row)
                        rows[row.audio_filepath] = row
                        clip = work.under_way.get(row.audio_filepath)
                        if clip is not None and not is_last and is_read_error(row):
                            unread.append(clip)
                    written.update(row.audio_filepath for row in new if row.error is None)
                    work.finish(batch_rows)
                    bar([row for row in new if is_last or not is_read_error(row)])
                return unread

            unread = write(work.pending(), is_last=False)
            if unread:
                time.sleep(RETRY_AFTER)
                again = (unread[at : at + options.batch_size] for at in range(0, len(unread), options.batch_size))
                write(again, is_last=True)
        kept = [row for row in writer.rows if row.audio_filepath in done]
        final = [replace(rows[name], text=text) for name, text in work.references.items() if name in rows]
        final += [row for name, row in rows.items() if name not in work.references]  # of a streamed set that changed
        writer.rewrite(final)
    return RunSummary(
        num_rows=len(final),
        num_kept=len(done),
        num_retried=len(writer.rows) - len(kept),
        num_changed=sum(row.text != work.references.get(row.audio_filepath, row.text) for row in kept),
        num_failed=sum(row.error is not None for row in final),
        audio_seconds=sum(row.duration for row in final if row.error is None),
        transcription_seconds=sum(row.time for row in final),
        timing=Timing(
            wall_seconds=round(time.perf_counter() - started, 3),
            loading_seconds=None if elsewhere else round(clock.loading.seconds, 3),
            recognising_seconds=None if elsewhere else round(clock.recognising.seconds, 3),
        ),
        first_error=next((f"{row.audio_filepath}: {row.error}" for row in final if row.error is not None), None),
    )


class _Work:
    """The batches of a run: which are left, and what has passed.

    Attributes:
        references: clip -> reference, of all batches that were looked at, in their order.
        under_way: the clips that were given out and have no row yet.
    """

    def __init__(self, batches: Iterable[list[Clip]], done: set[str]) -> None:
        self._batches = batches
        self._done = done
        self.references: dict[str, str] = {}
        self.under_way: dict[str, Clip] = {}

    def pending(self) -> Iterator[list[Clip]]:
        """The batches of which a clip is not done."""
        for batch in self._batches:
            self.references.update((clip.audio_filepath, clip.text) for clip in batch)
            if any(clip.audio_filepath not in self._done for clip in batch):
                self.under_way.update((clip.audio_filepath, clip) for clip in batch)
                yield batch

    def finish(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.under_way.pop(row.audio_filepath, None)


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


def _check_same_corpus(manifest: Path, names: Iterable[str], clips: set[str]) -> None:
    foreign = [name for name in names if name not in clips]
    if foreign:
        raise ResultsError(
            f"{manifest}: has rows of clips of another corpus ({short(foreign[0])!r} and {len(foreign) - 1} more); "
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

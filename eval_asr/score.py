"""Scores of results: word errors by the leaderboard's rules, and what stands behind them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from eval_asr.alignment import Piece, word_errors
from eval_asr.errors import ScoringError, ScoringWarning, short
from eval_asr.names import Run, SetName, parse_manifest_name
from eval_asr.normalise import Rules, left_out, rules_for
from eval_asr.records import read_settings
from eval_asr.references import with_references_of_now
from eval_asr.results import Row, manifests, read_rows
from eval_asr.sources import language_of
from eval_asr.statistics import bootstrap_interval
from eval_asr.word_errors import WordErrors

LENGTH_EDGES = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, float("inf"))  # seconds


@dataclass(frozen=True)
class ScoredRow:
    """A row with its normalised reference and hypothesis, their alignment, and the errors in it."""

    row: Row
    reference: str
    hypothesis: str
    pieces: tuple[Piece, ...]
    errors: WordErrors


@dataclass(frozen=True)
class LengthBucket:
    """The clips of at least ``low`` and under ``high`` seconds (``high`` may be infinite)."""

    low: float
    high: float
    num_clips: int
    errors: WordErrors


@dataclass(frozen=True)
class SetScore:
    """What one model made of one set.

    Attributes:
        name: model and set.
        rules: the rules used, in words.
        rows: the rows that count, in the file's order; chunks are joined.
        errors: their sum.
        wer: percent, rounded to 2 decimals.
        cer: character error rate in percent, rounded to 2 decimals.
        interval: 95 % bootstrap interval of the word error rate, in percent.
        rtfx: seconds of audio per second of transcription; ``None`` where a time is missing.
        num_failed: rows without a transcription; they count as empty ones.
        num_left_out: rows that do not count, by the leaderboard's rule.
        duration: seconds of audio that were transcribed.
        time: seconds that it took, those spent on clips that failed included.
        by_length: errors by clip length.
        manifest: of the rows; ``None`` where they are not of a file.
        part: what the rows are of the set, such as "40 of 400 clips"; empty where they are all of it.
    """

    name: SetName
    rules: str
    rows: tuple[ScoredRow, ...]
    errors: WordErrors
    wer: float
    cer: float
    interval: tuple[float, float]
    rtfx: float | None
    num_failed: int
    num_left_out: int
    duration: float
    time: float
    by_length: tuple[LengthBucket, ...]
    manifest: Path | None = None
    part: str = ""

    @property
    def run(self) -> Run:
        return Run(self.name.model, Path() if self.manifest is None else self.manifest.parent)


@dataclass(frozen=True)
class Composite:
    """One run over its sets: the mean of the rounded rates, the pooled speed, and how many sets are in part only."""

    wer: float
    rtfx: float | None
    num_sets: int
    num_in_part: int


def score_folder(
    folder: Path, *, rules: str = "classic", leaderboard: Path | None = None, language: str | None = None
) -> list[SetScore]:
    """Score every manifest of a folder (or the one that is named), by the references that the corpus has now.

    Args:
        rules: "classic" or "2026".
        leaderboard: a clone of the leaderboard's repository, for "2026".
        language: of the references; by default that of the run's settings or of the set's name.

    Raises:
        ResultsError: there are no results, or a line is wrong.
        ScoringError: the rules are not available, or a set has no rows that count.
    """
    paths = manifests(folder)
    begun = [path for path in paths if path.stat().st_size] or paths
    for path in paths:
        if path not in begun:
            warnings.warn(f"{path.name}: has no rows yet; it is left out", ScoringWarning, stacklevel=2)
    return [score_manifest(path, rules=rules, leaderboard=leaderboard, language=language) for path in begun]


def score_manifest(
    path: Path, *, rules: str = "classic", leaderboard: Path | None = None, language: str | None = None
) -> SetScore:
    """Score one manifest; see ``score_folder``."""
    settings = read_settings(path)
    name = parse_manifest_name(path.name) if settings is None else settings.name
    if language is None:
        language = language_of(f"{name.path}:{name.name}:{name.split}") if settings is None else settings.language
    chosen = rules_for(rules, language, leaderboard)
    rows, settings = with_references_of_now(read_rows(path), settings, path)
    part = "" if settings is None else settings.part_done(len(rows))
    return score_rows(rows, name, chosen, manifest=path, part=part)


def score_rows(
    rows: Sequence[Row], name: SetName, rules: Rules, *, manifest: Path | None = None, part: str = ""
) -> SetScore:
    """Score the rows of one set. A row with an error counts as an empty transcription.

    The rate is that of all words together: the sum of errors over the sum of words in the references. The speed is
    that of the rows that count: the audio of those without an error over the time of all.

    Args:
        rows: of the set.
        name: model and set.
        rules: of scoring.
        manifest: of the rows, if they are of a file.
        part: what the rows are of the set; empty for all of it.

    Raises:
        ScoringError: no row counts, or the normaliser fails on a text.
    """
    joined = join_chunks(rows)
    normalised = [(row, _normalised(rules, row, row.text)) for row in joined]
    kept = [(row, reference) for row, reference in normalised if not left_out(reference)]
    if not kept:
        raise ScoringError(f"{name.file_name}: none of its {len(joined)} rows counts; nothing can be scored")
    pairs = rules.pair([(reference, _normalised(rules, row, row.pred_text)) for row, reference in kept])
    scored = tuple(
        ScoredRow(row, reference, hypothesis, pieces, word_errors(pieces))
        for (row, _), (reference, hypothesis), pieces in zip(kept, pairs, rules.align(pairs), strict=True)
    )
    errors = sum((row.errors for row in scored), WordErrors())
    good = [row.row for row in scored if row.row.error is None]
    duration, time = sum(row.duration for row in good), sum(row.row.time for row in scored)
    timed = good and all(row.time and row.duration for row in good)
    return SetScore(
        name=name,
        rules=rules.title,
        rows=scored,
        errors=errors,
        wer=round(100 * errors.wer, 2),
        cer=round(100 * _character_error_rate(pairs), 2),
        interval=bootstrap_interval(*counts(scored)),
        rtfx=duration / time if timed else None,
        num_failed=sum(row.error is not None for row in joined),
        num_left_out=len(joined) - len(kept),
        duration=duration,
        time=time,
        by_length=_by_length(scored),
        manifest=manifest,
        part=part,
    )


def counts(rows: Sequence[ScoredRow]) -> tuple[np.ndarray, np.ndarray]:
    """Errors [rows] and words of the reference [rows]."""
    return (
        np.array([row.errors.total for row in rows], dtype=np.int64),
        np.array([row.errors.reference_words for row in rows], dtype=np.int64),
    )


def composites(scores: Iterable[SetScore]) -> dict[Run, Composite]:
    """Each run's mean of the rounded rates of its sets, and its audio over its time, all sets together.

    The eight parts of CORAAL count as one set with their mean, as in the leaderboard's long-form table.
    """
    by_run: dict[Run, list[SetScore]] = {}
    for score in scores:
        by_run.setdefault(score.run, []).append(score)
    result = {}
    for run, sets in by_run.items():
        timed = all(score.rtfx is not None for score in sets)
        rtfx = sum(score.duration for score in sets) / sum(score.time for score in sets) if timed else None
        groups: dict[str, list[float]] = {}
        for score in sets:
            is_part = score.name.path.endswith("coraal")
            groups.setdefault(score.name.path if is_part else score.name.file_name, []).append(score.wer)
        rates = [sum(group) / len(group) for group in groups.values()]
        result[run] = Composite(sum(rates) / len(rates), rtfx, len(sets), sum(bool(score.part) for score in sets))
    return result


def join_chunks(rows: Sequence[Row]) -> list[Row]:
    """One row for each recording of a chunked set: its chunks' texts in order, with their durations and times added.

    The reference is the recording's, which every chunk carries. Sets without ``parent_id`` stay as they are.
    """
    if not rows or rows[0].parent_id is None:
        return list(rows)
    recordings: dict[str, list[Row]] = {}
    for row in rows:
        recordings.setdefault(str(row.parent_id), []).append(row)
    joined = []
    for parent_id in sorted(recordings):
        chunks = sorted(recordings[parent_id], key=lambda row: row.chunk_index or 0)
        if [chunk.chunk_index for chunk in chunks] != list(range(len(chunks))):
            warnings.warn(
                f"recording {parent_id!r} lacks chunks: its missing words count as deleted",
                ScoringWarning,
                stacklevel=2,
            )
        errors = [f"chunk {chunk.chunk_index}: {chunk.error}" for chunk in chunks if chunk.error is not None]
        joined.append(
            Row(
                audio_filepath=parent_id,
                duration=sum(chunk.duration for chunk in chunks),
                time=sum(chunk.time for chunk in chunks) if all(chunk.time for chunk in chunks) else 0.0,
                text=chunks[0].text,
                pred_text=" ".join(text for chunk in chunks if (text := chunk.pred_text.strip())),
                error="; ".join(errors) or None,
            )
        )
    return joined


def _normalised(rules: Rules, row: Row, text: str) -> str:
    try:
        return rules.normalise(text)
    except Exception as error:  # the normalisers raise what their arithmetic raises
        reason = short(f"{type(error).__name__}: {error}")
        raise ScoringError(
            f"{short(row.audio_filepath)}: the normaliser fails on {text[:60]!r} ({reason}); mend that text in the "
            "manifest"
        ) from error


def _character_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    import jiwer

    references, hypotheses = zip(*pairs, strict=True)
    return float(jiwer.process_characters(list(references), list(hypotheses)).cer)


def _by_length(rows: Sequence[ScoredRow]) -> tuple[LengthBucket, ...]:
    """Errors of clips of 0 to 2 seconds, 2 to 5, and so on; buckets without clips are left out."""
    buckets = []
    for low, high in pairwise(LENGTH_EDGES):
        inside = [row for row in rows if low <= row.row.duration < high]
        if inside:
            buckets.append(LengthBucket(low, high, len(inside), sum((row.errors for row in inside), WordErrors())))
    return tuple(buckets)

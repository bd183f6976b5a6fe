"""Two runs on the same clips: which is better, how sure that is, and where they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval_asr.errors import ScoringError, short
from eval_asr.names import Run, run_names
from eval_asr.score import ScoredRow, SetScore, counts
from eval_asr.statistics import paired_bootstrap
from eval_asr.word_errors import WordErrors


@dataclass(frozen=True)
class ChangedClip:
    """A clip with more errors in one run than in the other."""

    before: ScoredRow
    after: ScoredRow

    @property
    def change(self) -> int:
        """Errors more (over 0) or fewer."""
        return self.after.errors.total - self.before.errors.total


@dataclass(frozen=True)
class Comparison:
    """Two runs on one set.

    Attributes:
        dataset: the set.
        before, after: what to call the two runs.
        part_before, part_after: what each has of the set, such as "40 of 400 clips"; empty for all of it.
        rules: the rules of scoring, the same for both.
        num_clips: clips that both ran.
        num_unpaired: clips that only one ran; they do not count.
        wer_before, wer_after: percent, over the clips that both ran.
        p_value: of there being no difference, by the paired bootstrap.
        interval: 95 % interval of ``difference``, in percent.
        changed: the clips whose errors changed, the largest changes first.
    """

    dataset: str
    before: str
    after: str
    part_before: str
    part_after: str
    rules: str
    num_clips: int
    num_unpaired: int
    wer_before: float
    wer_after: float
    p_value: float
    interval: tuple[float, float]
    changed: tuple[ChangedClip, ...]

    @property
    def difference(self) -> float:
        return self.wer_after - self.wer_before


def compare(before: SetScore, after: SetScore) -> Comparison:
    """Compare two scores of one set.

    Raises:
        ScoringError: they have no clips in common, a clip's reference differs, or they were scored by other rules.
    """
    if before.rules != after.rules:
        raise ScoringError(
            f"{before.name.dataset}: is scored by two rules ({before.rules}; {after.rules}); give both one --language"
        )
    first, second = _by_clip(before), _by_clip(after)
    common = [name for name in first if name in second]
    if not common:
        raise ScoringError(f"{before.name.file_name} and {after.name.file_name} have no clips in common")
    pairs = [ChangedClip(first[name], second[name]) for name in common]
    for pair in pairs:
        if pair.before.row.text != pair.after.row.text:
            raise ScoringError(
                f"{short(pair.before.row.audio_filepath)}: has two references, {pair.before.row.text[:60]!r} and "
                f"{pair.after.row.text[:60]!r}; compare runs on one corpus"
            )
    errors_before, words = counts([pair.before for pair in pairs])
    errors_after, _ = counts([pair.after for pair in pairs])
    p_value, interval = paired_bootstrap(errors_before, errors_after, words)
    changed = [pair for pair in pairs if pair.change]
    runs = _labels([before, after])
    return Comparison(
        dataset=before.name.dataset,
        before=runs[before.run],
        after=runs[after.run],
        part_before=before.part,
        part_after=after.part,
        rules=before.rules,
        num_clips=len(pairs),
        num_unpaired=len(first) + len(second) - 2 * len(pairs),
        wer_before=100 * sum((pair.before.errors for pair in pairs), WordErrors()).wer,
        wer_after=100 * sum((pair.after.errors for pair in pairs), WordErrors()).wer,
        p_value=p_value,
        interval=interval,
        changed=tuple(sorted(changed, key=lambda pair: (-abs(pair.change), pair.before.row.audio_filepath))),
    )


def compare_scores(before: Sequence[SetScore], after: Sequence[SetScore]) -> list[Comparison]:
    """Compare the sets that both have, each in one run.

    Raises:
        ScoringError: a side has two runs of one set, or the sides share no set.
    """
    first, second = _by_set(before), _by_set(after)
    common = [key for key in first if key in second]
    if not common:
        raise ScoringError(
            f"the two have no set in common: {', '.join(map(str, first))}; and {', '.join(map(str, second))}"
        )
    return [compare(first[key], second[key]) for key in common]


def _by_set(scores: Sequence[SetScore]) -> dict[str, SetScore]:
    result: dict[str, SetScore] = {}
    runs = _labels(scores)
    for score in scores:
        key = score.name.dataset
        if key in result:
            raise ScoringError(
                f"{key}: was run by {runs[result[key].run]} and by {runs[score.run]}; name its folder or manifest"
            )
        result[key] = score
    return result


def _labels(scores: Sequence[SetScore]) -> dict[Run, str]:
    return run_names(score.run for score in scores)


def _by_clip(score: SetScore) -> dict[str, ScoredRow]:
    return {row.row.audio_filepath: row for row in score.rows}

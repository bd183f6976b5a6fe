"""The word error rate while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable

from eval_asr.alignment import plain_alignments, word_errors
from eval_asr.normalise import left_out, whisper_normaliser
from eval_asr.results import Row
from eval_asr.word_errors import WordErrors


class RunningScore:
    """Errors of the rows so far, by Whisper's normaliser: a view of the run, not its score."""

    def __init__(self, language: str) -> None:
        self.normalise = whisper_normaliser(language)
        self.errors = WordErrors()
        self.num_failed = 0

    def after(self, rows: Iterable[Row]) -> str:
        """Add rows, and return the summary."""
        for row in rows:
            self.add(row)
        return self.summary()

    def add(self, row: Row) -> None:
        self.num_failed += row.error is not None
        try:
            reference, hypothesis = self.normalise(row.text), self.normalise(row.pred_text)
        except (ValueError, ArithmeticError):  # a number beyond Python's: not shown; reported by scoring
            return
        if not left_out(reference):
            self.errors += word_errors(*plain_alignments([(reference, hypothesis)]))

    def summary(self) -> str:
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        return f"WER {100 * self.errors.wer:.2f} %{failed}"

"""How many words of a reference a hypothesis has, and how many it got wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WordErrors:
    """Counts of an alignment of words; they add up."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_words(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def wer(self) -> float:
        """Errors per word of the reference, as a fraction; infinite for insertions into an empty reference."""
        if self.reference_words == 0:
            return float("inf") if self.total else 0.0
        return self.total / self.reference_words

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

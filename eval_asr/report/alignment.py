"""Which word was taken for which: jiwer's alignment, word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

Kind = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Piece:
    """One step of an alignment: a run of equal words, or one word that was substituted, deleted or inserted.

    ``reference`` is empty for an insertion, ``hypothesis`` for a deletion.
    """

    kind: Kind
    reference: str
    hypothesis: str


def align(references: Sequence[str], hypotheses: Sequence[str]) -> list[tuple[Piece, ...]]:
    """Align each reference with its hypothesis; both normalised already.

    The alignment has the fewest errors (Levenshtein), which one of several equally short ones is jiwer's choice.
    """
    if not references:
        return []
    output = jiwer.process_words(list(references), list(hypotheses))
    return [
        tuple(_pieces(chunks, reference, hypothesis))
        for chunks, reference, hypothesis in zip(output.alignments, output.references, output.hypotheses, strict=True)
    ]


def _pieces(
    chunks: Iterable[jiwer.AlignmentChunk], reference: Sequence[str], hypothesis: Sequence[str]
) -> Iterable[Piece]:
    for chunk in chunks:
        said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            yield Piece("equal", " ".join(said), " ".join(heard))
        elif chunk.type == "substitute":
            yield from (Piece("substitute", one, other) for one, other in zip(said, heard, strict=True))
        elif chunk.type == "delete":
            yield from (Piece("delete", word, "") for word in said)
        else:
            yield from (Piece("insert", "", word) for word in heard)


def commonest_errors(alignments: Iterable[Iterable[Piece]], limit: int) -> list[tuple[Piece, int]]:
    """The errors that come most often, with their counts; among equals the first met comes first."""
    counts = Counter(piece for pieces in alignments for piece in pieces if piece.kind != "equal")
    return counts.most_common(limit)

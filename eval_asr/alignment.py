"""Which word was taken for which: the alignments that the rules of scoring make, and the errors in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from eval_asr.errors import ScoringError
from eval_asr.word_errors import WordErrors
from phi4mm.errors import install_hint

if TYPE_CHECKING:
    import jiwer

Kind = Literal["equal", "substitute", "delete", "insert"]
Pair = tuple[str, str]

_NO_WORD = " "  # stands for a missing word in kaldialign's alignments; split text has no such word


@dataclass(frozen=True)
class Piece:
    """One step of an alignment: a run of equal words, or one word that was substituted, deleted or inserted.

    ``reference`` is empty for an insertion, ``hypothesis`` for a deletion. An equal piece has two texts where the rules
    take a compound written as one word for the same as two words.
    """

    kind: Kind
    reference: str
    hypothesis: str


def word_errors(pieces: Iterable[Piece]) -> WordErrors:
    """The errors in an alignment: one for each piece that is not equal."""
    counts = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for piece in pieces:
        counts[piece.kind] += len(piece.reference.split(" ")) if piece.kind == "equal" else 1
    return WordErrors(counts["equal"], counts["substitute"], counts["delete"], counts["insert"])


def plain_alignments(pairs: Sequence[Pair]) -> list[tuple[Piece, ...]]:
    """Align each reference with its hypothesis, both normalised, as ``jiwer.process_words`` does.

    The alignment has the fewest errors (Levenshtein); which one of several equally short ones is jiwer's choice.
    """
    import jiwer

    if not pairs:
        return []
    references, hypotheses = zip(*pairs, strict=True)
    output = jiwer.process_words(list(references), list(hypotheses))
    return [
        tuple(_plain_pieces(chunks, reference, hypothesis))
        for chunks, reference, hypothesis in zip(output.alignments, output.references, output.hypotheses, strict=True)
    ]


def compound_alignments(pairs: Sequence[Pair]) -> list[tuple[Piece, ...]]:
    """Align each pair as ``kaldialign`` does, where "white paper" and "whitepaper" are equal.

    Raises:
        ScoringError: kaldialign is not installed.
    """
    try:
        from kaldialign import align
    except ImportError as error:
        raise ScoringError(f"scoring 2026 needs kaldialign; {install_hint('eval')}") from error
    return [
        tuple(_compound_pieces(align(reference.split(), hypothesis.split(), _NO_WORD, merge_compounds=True)))
        for reference, hypothesis in pairs
    ]


def commonest_errors(alignments: Iterable[Iterable[Piece]], limit: int) -> list[tuple[Piece, int]]:
    """The errors that come most often, with their counts; among equals the first met comes first."""
    counts = Counter(piece for pieces in alignments for piece in pieces if piece.kind != "equal")
    return counts.most_common(limit)


def _plain_pieces(
    chunks: Iterable[jiwer.AlignmentChunk], reference: Sequence[str], hypothesis: Sequence[str]
) -> Iterable[Piece]:
    for chunk in chunks:
        expected = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        recognised = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            yield Piece("equal", " ".join(expected), " ".join(recognised))
        elif chunk.type == "substitute":
            yield from (Piece("substitute", one, other) for one, other in zip(expected, recognised, strict=True))
        elif chunk.type == "delete":
            yield from (Piece("delete", word, "") for word in expected)
        else:
            yield from (Piece("insert", "", word) for word in recognised)


def _compound_pieces(steps: Iterable[Pair]) -> Iterable[Piece]:
    for is_equal, run in groupby(steps, lambda step: step[0] == step[1]):
        if is_equal:
            words = " ".join(word for word, _ in run)
            yield Piece("equal", words, words)
        else:
            yield from (_compound_piece(*step) for step in run)


def _compound_piece(reference: str, hypothesis: str) -> Piece:
    if reference == _NO_WORD:
        return Piece("insert", "", hypothesis)
    if hypothesis == _NO_WORD:
        return Piece("delete", reference, "")
    joined = reference.replace(" ", "") == hypothesis.replace(" ", "")
    return Piece("equal" if joined else "substitute", reference, hypothesis)

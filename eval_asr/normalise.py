"""The rules of scoring: how text is normalised, and how words are aligned.

``classic``: Whisper's normalisers (Radford et al. 2022, appendix C) and jiwer: the English one, and for other languages
the basic one, which splits the letters of languages that are written without spaces. The code is transformers' copy of
them, which is the one that the leaderboard copied in its turn; the table of British spellings is the package
whisper-normalizer's. That package's own class has four more contractions since 0.1.4 ("kinda", "sorta", "dunno",
"cause"), which the leaderboard has not.

``2026``: the leaderboard's own normaliser, from a clone of its repository, and kaldialign with merged compounds; for
other languages than English its multilingual normaliser and its rule for compounds besides.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from eval_asr.alignment import Pair, Piece, compound_alignments, plain_alignments
from eval_asr.errors import ScoringError
from eval_asr.languages import language_code

SCORINGS = ("classic", "2026")
IGNORED = "ignore time segment in scoring"
UNSPACED = ("zh", "ja", "th", "lo", "my")  # languages written without spaces, whose letters Whisper scores


@dataclass(frozen=True)
class Rules:
    """How results are scored.

    Attributes:
        title: the rules in words.
        normalise: of a reference or a hypothesis.
        align: the alignment of each pair of normalised texts; errors and the words shown are both taken from it.
        pair: what happens to normalised references and hypotheses together, before the alignment.
    """

    title: str
    normalise: Callable[[str], str]
    align: Callable[[Sequence[Pair]], list[tuple[Piece, ...]]]
    pair: Callable[[Sequence[Pair]], list[Pair]] = list


def left_out(reference: str) -> bool:
    """Whether the leaderboard drops a row with this normalised reference."""
    return reference.strip() in ("", IGNORED)


def rules_for(scoring: str, language: str, leaderboard: Path | None) -> Rules:
    """The rules of a name, for a language.

    Args:
        scoring: "classic" or "2026".
        language: two-letter code.
        leaderboard: a clone of github.com/huggingface/open_asr_leaderboard; "2026" needs one.

    Raises:
        ScoringError: the name is not known, the clone is missing, or it is not one.
        EvalError: the language is not a code.
    """
    language = language_code(language)
    if scoring == "classic":
        which = "English normaliser" if language == "en" else f"basic normaliser ({language})"
        return Rules(f"classic: Whisper's {which}, jiwer", whisper_normaliser(language), plain_alignments)
    if scoring != "2026":
        raise ScoringError(f"scoring {scoring!r} is not known; known are {', '.join(SCORINGS)}")
    if leaderboard is None:
        raise ScoringError(
            "scoring 2026 uses the leaderboard's own normaliser; clone github.com/huggingface/open_asr_leaderboard "
            "and name the clone with --leaderboard DIR"
        )
    data_utils, eval_utils = _leaderboard_modules(leaderboard.resolve())
    if language == "en":
        title = "2026: the leaderboard's English normaliser, kaldialign with merged compounds"
        return Rules(title, data_utils.normalizer, compound_alignments)
    if language == "hi":
        raise ScoringError("Hindi is scored by the leaderboard over a lattice of spellings, which is not done here")
    title = f"2026: the leaderboard's multilingual normaliser ({language}), kaldialign with merged compounds"
    return Rules(
        title,
        partial(data_utils.ml_normalizer, lang=language),
        compound_alignments,
        partial(_joined_compounds, eval_utils.normalize_compound_pairs),
    )


@lru_cache(maxsize=1)
def english_normaliser() -> Callable[[str], str]:
    """Whisper's English normaliser."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    from whisper_normalizer.english import EnglishSpellingNormalizer

    normaliser: Callable[[str], str] = EnglishTextNormalizer(EnglishSpellingNormalizer().mapping)
    return normaliser


def whisper_normaliser(language: str) -> Callable[[str], str]:
    """Whisper's normaliser for a language: the English one, or the basic one."""
    if language == "en":
        return english_normaliser()
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normaliser: Callable[[str], str] = BasicTextNormalizer(split_letters=language in UNSPACED)
    return normaliser


def _joined_compounds(rule: Callable[[list[str], list[str]], Any], pairs: Sequence[Pair]) -> list[Pair]:
    references, hypotheses = rule([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    return list(zip(references, hypotheses, strict=True))


@lru_cache(maxsize=1)
def _leaderboard_modules(clone: Path) -> tuple[ModuleType, ModuleType]:
    """The clone's ``normalizer.data_utils`` and ``normalizer.eval_utils``.

    Its modules import each other as ``normalizer``, so that name is theirs in this process.
    """
    package = clone / "normalizer"
    hint = "expected a clone of github.com/huggingface/open_asr_leaderboard of 2026"
    if not (package / "data_utils.py").is_file():
        raise ScoringError(f"{clone}: has no normalizer/data_utils.py; {hint}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "normalizer"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "normalizer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["normalizer"] = module
    try:
        spec.loader.exec_module(module)
        data_utils = importlib.import_module("normalizer.data_utils")
        eval_utils = importlib.import_module("normalizer.eval_utils")
    except ImportError as error:
        raise ScoringError(f"{clone}: its normalizer cannot be imported ({error}); pip install {error.name}") from error
    missing = [name for name in ("normalizer", "ml_normalizer") if not hasattr(data_utils, name)]
    if missing or not hasattr(eval_utils, "normalize_compound_pairs"):
        raise ScoringError(f"{clone}: is too old, its normalizer lacks the rules of 2026; {hint}")
    return data_utils, eval_utils

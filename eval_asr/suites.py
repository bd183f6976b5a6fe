"""The leaderboard's sets by name, as sources.

Names as in github.com/huggingface/open_asr_leaderboard: the English sets of its classic table (``open-asr``), of its
table of 2026 with corrected references (``open-asr-2026``), the multilingual table (without
Hindi, which is scored over a lattice of spellings, and Armenian, which is elsewhere), and long form.
"""

from __future__ import annotations

from eval_asr.errors import SourceError

_CLASSIC = "hf-audio/esb-datasets-test-only-sorted"
_CURRENT = "hf-audio/open-asr-leaderboard"
_MULTILINGUAL = "hf-audio/open-asr-leaderboard-multilingual-datasets"
_LONG_FORM = "hf-audio/asr-leaderboard-longform"

_LANGUAGES = {
    "fleurs": ("de", "fr", "it", "es", "pt", "nl"),
    "mcv": ("de", "es", "fr", "it", "nl"),
    "mls": ("es", "fr", "it", "pt", "nl"),
}

SUITES: dict[str, tuple[str, ...]] = {
    "open-asr": (
        f"{_CLASSIC}:ami:test",
        f"{_CLASSIC}:earnings22:test",
        f"{_CLASSIC}:gigaspeech:test",
        f"{_CLASSIC}:librispeech:test.clean",
        f"{_CLASSIC}:librispeech:test.other",
        f"{_CLASSIC}:spgispeech:test",
        f"{_CLASSIC}:tedlium:test",
        f"{_CLASSIC}:voxpopuli:test",
    ),
    "open-asr-2026": (
        f"{_CURRENT}:ami_cleaned:test",
        "ArtificialAnalysis/Earnings22-Cleaned-AA-chunked::test",
        f"{_CURRENT}:gigaspeech_cleaned:test",
        f"{_CURRENT}:librispeech:test.clean",
        f"{_CURRENT}:librispeech:test.other",
        f"{_CURRENT}:spgispeech:test",
        f"{_CURRENT}:voxpopuli_cleaned_aa:test",
        "VoiceArena/Monsoon_en_IN_test::test",
    ),
    "open-asr-multilingual": tuple(
        f"{_MULTILINGUAL}:{corpus}_{language}:test"
        for corpus, languages in _LANGUAGES.items()
        for language in languages
    ),
    "long-form": (
        f"{_LONG_FORM}:earnings21:test",
        f"{_LONG_FORM}:earnings22:test",
        "distil-whisper/tedlium-long-form:default:test",
        *(f"bezzam/coraal:{part}:test" for part in ("ATL", "DCA", "DCB", "DTA", "LES", "PRV", "ROC", "VLD")),
    ),
}


def suite(name: str) -> tuple[str, ...]:
    """The sources of a named suite.

    Raises:
        SourceError: there is no such suite.
    """
    if name not in SUITES:
        raise SourceError(f"suite {name!r} is not known; known are {', '.join(SUITES)}")
    return SUITES[name]

"""Word error rates that others published, in percent, each with its date, scoring rules and source.

Only figures that stand in the source named beside them. Whole sets, on an A100 or H200; ours are set beside them, not
mixed with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from eval_asr.names import SetName

ENGLISH = (
    "AMI", "Earnings22", "GigaSpeech", "LibriSpeech clean", "LibriSpeech other", "SPGISpeech", "TED-LIUM", "VoxPopuli",
)  # fmt: skip
MULTILINGUAL = (
    "CoVoST de", "FLEURS de", "CoVoST fr", "MLS fr", "FLEURS fr", "CoVoST it", "MLS it", "FLEURS it",
    "CoVoST es", "MLS es", "FLEURS es", "MLS pt", "FLEURS pt",
)  # fmt: skip

CLASSIC = "classic"
RULES_2026 = "2026"


@dataclass(frozen=True)
class Published:
    """What one system scored, as published.

    Attributes:
        system: its name on the hub or the leaderboard.
        date: of the publication.
        rules: "classic" (Whisper's normaliser, plain word error rate) or "2026" (the leaderboard's own normaliser,
            merged compounds).
        source: where the figures stand.
        wer: set -> word error rate; sets that the source leaves out are absent.
        mean: the mean that the source gives; ``None`` where it gives none.
        rtfx: seconds of audio a second, as the source gives it.
    """

    system: str
    date: str
    rules: str
    source: str
    wer: Mapping[str, float]
    mean: float | None
    rtfx: float | None = None


_BOARD = "github.com/huggingface/open_asr_leaderboard"
_TABLE = f"{_BOARD}, scripts/data/25032026_en_shortform.csv"
_LATER_TABLE = f"{_BOARD}, scripts/data/en_shortform.csv at commit 090df12"
_LANGUAGES_TABLE = f"{_BOARD}, scripts/data/25032026_multilingual.csv"


def _english(system: str, mean: float, rtfx: float | None, *wer: float) -> Published:
    wers = dict(zip(ENGLISH, wer, strict=True))
    return Published(system, "25 March 2026", CLASSIC, _TABLE, wers, mean, rtfx)


def _multilingual(system: str, mean: float, rtfx: float | None, *wer: float) -> Published:
    wers = dict(zip(MULTILINGUAL, wer, strict=True))
    return Published(system, "25 March 2026", "classic, multilingual", _LANGUAGES_TABLE, wers, mean, rtfx)


PHI4 = "microsoft/Phi-4-multimodal-instruct"

PUBLISHED = (
    _english(PHI4, 6.02, 151.1, 11.09, 10.16, 9.33, 1.69, 3.82, 3.06, 2.94, 6.04),
    Published(
        PHI4,
        "4 March 2025",
        CLASSIC,
        f"{_BOARD}/pull/51, the leaderboard's own run (six of its eight sets)",
        {
            "AMI": 11.45,
            "Earnings22": 10.50,
            "GigaSpeech": 9.77,
            "LibriSpeech clean": 1.67,
            "LibriSpeech other": 3.82,
            "SPGISpeech": 3.11,
        },
        None,
    ),
    Published(
        PHI4,
        "4 March 2025",
        CLASSIC,
        "its model card, as quoted in github.com/kaixxx/noScribe/issues/154",
        {},
        6.14,
    ),
    Published(
        "CohereLabs/cohere-transcribe-03-2026",
        "by 24 April 2026",
        CLASSIC,
        _LATER_TABLE,
        dict(zip(ENGLISH, (8.13, 10.86, 9.34, 1.25, 2.37, 3.08, 2.49, 5.87), strict=True)),
        5.42,
        524.88,
    ),
    _english("zoom/scribe_v1", 5.47, None, 10.03, 9.53, 9.61, 1.63, 2.81, 1.59, 3.22, 5.37),
    _english("ibm-granite/granite-4.0-1b-speech", 5.52, 280.02, 8.44, 8.48, 10.14, 1.42, 2.85, 3.89, 3.1, 5.84),
    _english("nvidia/canary-qwen-2.5b", 5.63, 418.28, 10.19, 10.45, 9.43, 1.61, 3.1, 1.9, 2.71, 5.66),
    _english("Qwen/Qwen3-ASR-1.7B", 5.76, 147.93, 10.56, 10.25, 8.74, 1.63, 3.4, 2.84, 2.28, 6.35),
    _english("nvidia/parakeet-tdt-0.6b-v2", 6.05, 3386.02, 11.16, 11.15, 9.74, 1.69, 3.19, 2.17, 3.38, 5.95),
    _english("openai/whisper-large-v3", 7.44, 145.51, 15.95, 11.29, 10.02, 2.01, 3.91, 2.94, 3.86, 9.54),
    Published(
        "bosonai/higgs-audio-v3-stt",
        "13 June 2026",
        RULES_2026,
        f"{_BOARD}/pull/164, reported by its authors (without TED-LIUM, as the 2026 leaderboard)",
        {
            "AMI": 7.86,
            "Earnings22": 8.26,
            "GigaSpeech": 7.49,
            "LibriSpeech clean": 1.07,
            "LibriSpeech other": 2.60,
            "SPGISpeech": 2.07,
            "VoxPopuli": 5.93,
        },
        5.04,
        110.0,
    ),
)  # fmt: skip

PUBLISHED_MULTILINGUAL = (
    _multilingual(PHI4, 4.41, 78.17, 4.14, 3.77, 6.93, 4.28, 4.39, 3.29, 7.2, 1.95, 4.01, 3.98, 3.13, 6.88, 3.35),
    _multilingual(
        "elevenlabs/scribe_v2", 2.67, None,
        2.24, 2.3, 4.45, 2.54, 2.86, 2.22, 4.57, 0.94, 2.51, 2.56, 1.91, 3.02, 2.63,
    ),
    _multilingual(
        "mistralai/Voxtral-Small-24B-2507", 3.70, 42.04,
        3.43, 2.59, 5.6, 3.22, 3.57, 3.33, 6.09, 2.31, 3.02, 3.23, 2.86, 5.06, 3.75,
    ),
    _multilingual(
        "openai/whisper-large-v3", 4.81, 110.92,
        5.25, 3.27, 10.18, 3.92, 4.98, 5.31, 6.5, 2.26, 4.47, 4.16, 2.31, 6.39, 3.53,
    ),
)  # fmt: skip

_ALIASES = {"tedlium": "TED-LIUM", "librispeech_test_clean": "LibriSpeech clean", "librispeech_test_other":
            "LibriSpeech other"}  # fmt: skip
# Its data sets, without their owner; copies of them too.
_PATHS = (
    "open_asr_leaderboard",
    "open_asr_leaderboard_multilingual_datasets",
    "esb_datasets_test_only_sorted",
    "asr_leaderboard_datasets",
)


def leaderboard_set(name: SetName) -> str | None:
    """The leaderboard's set that these results are of, or ``None``: another set, or not the leaderboard's copy."""
    path, config, split = (re.sub(r"[^a-z0-9]+", "_", part.lower()) for part in (name.path, name.name, name.split))
    if not any(path == known or path.endswith(f"_{known}") for known in _PATHS):
        return None
    if not split.startswith("test"):
        return None
    if f"{config}_{split}" in _ALIASES:
        return _ALIASES[f"{config}_{split}"]
    if split != "test":
        return None
    sets = {re.sub(r"[^a-z0-9]+", "_", label.lower()): label for label in (*ENGLISH, *MULTILINGUAL)}
    return sets.get(config) or _ALIASES.get(config)

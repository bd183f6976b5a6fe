"""Stage: single words cut from clips in which the speaker pauses between all of them.

AN4's speakers read letters and digits one by one, so about half of its clips fall apart at silences alone: many more
people who say single digits than the five of FSDD.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from phi4mm.inputs.audio import load_audio
from phi4mm.train.data import Clip
from phi4mm.train.files import write_rows
from phi4mm.train.synthesis import MANIFEST

HOP_SECONDS, WINDOW_SECONDS = 0.01, 0.02
THRESHOLDS = (0.3, 0.25, 0.35, 0.2, 0.4, 0.45, 0.5)  # of the way from a clip's quiet to its loud, in decibels
SHORTEST_SOUND, SHORTEST_WORD = 3, 10  # hops
LONGEST_GAP_IN_A_WORD = 12  # hops, as before the release of "eight"
MARGIN_SECONDS = 0.05


def word_spans(samples: np.ndarray, rate: int, num_words: int) -> list[tuple[int, int]] | None:
    """Where each of ``num_words`` words begins and ends, in samples; ``None`` where pauses do not tell."""
    hop, window = int(HOP_SECONDS * rate), int(WINDOW_SECONDS * rate)
    if len(samples) <= window:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    level = 10 * np.log10(np.square(frames, dtype=np.float64).mean(1) + 1e-10)
    quiet, loud = np.percentile(level, 10), np.percentile(level, 95)
    for threshold in THRESHOLDS:
        spans = _sounds(level > quiet + threshold * (loud - quiet))
        spans = _merged(spans, num_words)
        if len(spans) == num_words and all(end - start >= SHORTEST_WORD for start, end in spans):
            return [(start * hop, end * hop) for start, end in spans]
    return None


def _sounds(active: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], active.astype(np.int8), [0]))))
    pairs = edges.reshape(-1, 2).tolist()
    return [(start, end) for start, end in pairs if end - start >= SHORTEST_SOUND]


def _merged(spans: list[tuple[int, int]], wanted: int) -> list[tuple[int, int]]:
    """Spans joined over their shortest gaps until as many are left, or no gap is short enough to be within a word."""
    spans = list(spans)
    while len(spans) > wanted:
        gaps = [after[0] - before[1] for before, after in pairwise(spans)]
        at = int(np.argmin(gaps))
        if gaps[at] > LONGEST_GAP_IN_A_WORD:
            break
        spans[at : at + 2] = [(spans[at][0], spans[at + 1][1])]
    return spans


def cut_words(clips: Sequence[Clip], folder: Path) -> None:
    """Write the words of every clip that falls apart, with a manifest, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for clip in tqdm(clips, desc="cutting words", disable=None):
        waveform = load_audio(clip.path)
        spans = word_spans(waveform.samples, waveform.sampling_rate, len(clip.words))
        margin = int(MARGIN_SECONDS * waveform.sampling_rate)
        for word, (start, end) in zip(clip.words, spans or (), strict=spans is not None):
            file = folder / f"{len(rows)}.flac"
            samples = waveform.samples[max(0, start - margin) : end + margin]
            soundfile.write(file, samples, waveform.sampling_rate)
            rows.append({"audio_filepath": file.name, "text": word, "speaker": clip.speaker})
    write_rows(folder / MANIFEST, rows)

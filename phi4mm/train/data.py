"""The corpora: what is spoken, where, by whom, and which speakers training never hears."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi4mm.train.files import read_rows, write_rows
from phi4mm.train.synthesis import MANIFEST
from phi4mm.train.words import NUMBER_WORDS

HELD_OUT_FSDD = ("jackson",)
HELD_OUT_VOICES = ("flite-rms", "kokoro-af_bella", "kokoro-bm_george")
HELD_OUT_AN4_EVERY = 10  # every tenth speaker, in alphabetical order
HELD_OUT_READERS_EVERY = 10  # the same for Mini LibriSpeech


@dataclass(frozen=True)
class Clip:
    """One recording: ``words`` are lower-case, ``corpus`` is "fsdd", "an4", "an4 words", or a synthetic voice's script
    ("numbers", "sentences")."""

    path: Path
    words: tuple[str, ...]
    speaker: str
    corpus: str

    @property
    def only_numbers(self) -> bool:
        return set(self.words) <= set(NUMBER_WORDS)


@dataclass(frozen=True)
class Split:
    """Clips to train on, and the clips of each held-out group of speakers by the group's name."""

    train: tuple[Clip, ...]
    held_out: dict[str, tuple[Clip, ...]]


@dataclass(frozen=True)
class ReadSplit:
    """Ordinary read speech, split by speaker."""

    train: tuple[Clip, ...]
    held_out: tuple[Clip, ...]


def read_clips(manifest: Path, corpus: str) -> list[Clip]:
    """The clips of a manifest (JSON lines: audio_filepath relative to it, text, speaker)."""
    return [
        Clip(manifest.parent / row["audio_filepath"], _words(row["text"]), row["speaker"], corpus)
        for row in read_rows(manifest)
    ]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def speech_corpora(data: Path, words: Path, voices: Path) -> Split:
    """FSDD, AN4, the single words cut from it, and the synthetic voices, split by speaker."""
    fsdd = read_clips(data / "fsdd" / "train.jsonl", "fsdd")
    an4 = read_clips(data / "an4" / "train.jsonl", "an4")
    an4_words = read_clips(words / MANIFEST, "an4 words")
    numbers, sentences = (_read_voices(voices, script) for script in ("numbers", "sentences"))
    held_out = {"fsdd": _of(fsdd, HELD_OUT_FSDD), "an4": an4_held_out(an4)}
    an4_speakers = {clip.speaker for clip in held_out["an4"]}
    held_out["an4 numbers"] = tuple(clip for clip in held_out["an4"] if clip.only_numbers)
    held_out |= {voice: _of(numbers, (voice,)) for voice in HELD_OUT_VOICES}
    kept_out = {*HELD_OUT_FSDD, *an4_speakers, *HELD_OUT_VOICES}
    everything = (*fsdd, *an4, *an4_words, *numbers, *sentences)
    train = tuple(clip for clip in everything if clip.speaker not in kept_out)
    return Split(train, {name: clips for name, clips in held_out.items() if clips})


def an4_held_out(clips: Sequence[Clip]) -> tuple[Clip, ...]:
    """AN4's clips of every tenth speaker."""
    return _of(clips, sorted({clip.speaker for clip in clips})[::HELD_OUT_AN4_EVERY])


def split_read_speech(data: Path) -> ReadSplit:
    """Mini LibriSpeech."""
    clips = read_clips(data / "mini_librispeech" / "train.jsonl", "mini_librispeech")
    speakers = sorted({clip.speaker for clip in clips})
    kept_out = speakers[::HELD_OUT_READERS_EVERY]
    return ReadSplit(_of(clips, set(speakers) - set(kept_out)), _of(clips, kept_out))


def held_out_questions(voices: Path, questions: Sequence[str]) -> tuple[Clip, ...]:
    """Those of ``questions`` that a held-out voice speaks."""
    asked = {tuple(question.rstrip("?").split()) for question in questions}
    spoken = _of(_read_voices(voices, "sentences"), HELD_OUT_VOICES)
    return tuple(clip for clip in spoken if clip.words in asked)


def _read_voices(voices: Path, script: str) -> list[Clip]:
    return [clip for manifest in sorted(voices.glob(f"{script}/*/{MANIFEST}")) for clip in read_clips(manifest, script)]


def write_manifest(path: Path, clips: Sequence[Clip]) -> None:
    """JSON lines, paths relative to the manifest, for other programs."""
    rows = [
        {
            "audio_filepath": os.path.relpath(clip.path, path.parent),
            "text": " ".join(clip.words),
            "speaker": clip.speaker,
        }
        for clip in clips
    ]
    write_rows(path, rows)


def _of(clips: Sequence[Clip], speakers: Iterable[str]) -> tuple[Clip, ...]:
    wanted = set(speakers)
    return tuple(clip for clip in clips if clip.speaker in wanted)

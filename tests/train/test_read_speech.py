"""Read speech: its pieces, its shards, and who is held out of it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from phi4mm.train.data import Clip, split_read_speech
from phi4mm.train.files import write_rows
from phi4mm.train.read_speech import NUM_PIECES, Pieces, read_batches, train_pieces, write_read_versions
from phi4mm.train.shards import Shard

SENTENCES = ("the old man and the sea", "the cold moon", "an old song")


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "noise.flac", noise, 16000)
    return [Clip(tmp_path / "noise.flac", tuple(text.split()), "someone", "read") for text in SENTENCES]


@pytest.fixture
def pieces(clips: list[Clip], tmp_path: Path) -> Pieces:
    train_pieces(clips, tmp_path / "pieces.json")
    return Pieces(tmp_path / "pieces.json")


def test_pieces_spell_the_sentence(pieces: Pieces) -> None:
    assert len(pieces.vocabulary) <= NUM_PIECES
    said = pieces.of(["the", "man", "sang"])
    assert set(said) <= set(pieces.vocabulary)
    assert "".join(said) == "\u2581the\u2581man\u2581sang"


def test_versions_differ_and_say_the_same(clips: list[Clip], pieces: Pieces, tmp_path: Path) -> None:
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    write_read_versions(paths, clips, pieces)
    first, second = (Shard(path, pieces.vocabulary) for path in paths)
    assert [u.words for u in first] == [u.words for u in second] == [pieces.of(clip.words) for clip in clips]
    assert not torch.equal(first.frames[:50], second.frames[:50])


def test_batches_do_not_end(clips: list[Clip], pieces: Pieces, tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write_read_versions([path], clips, pieces)
    batches = read_batches([path], pieces.vocabulary, 150, 0.5, 0, torch.device("cpu"))
    assert all(set(words) <= set(pieces.vocabulary) for batch in islice(batches, 7) for words in batch.words)


def test_every_tenth_reader_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"audio_filepath": f"{speaker}.flac", "text": "a word", "speaker": f"{speaker:02}"}
        for speaker in range(12)
        for _ in range(2)
    ]
    write_rows(tmp_path / "mini_librispeech" / "train.jsonl", rows)
    split = split_read_speech(tmp_path)
    assert {clip.speaker for clip in split.held_out} == {"00", "10"}
    assert {clip.speaker for clip in split.train} == {f"{speaker:02}" for speaker in range(12)} - {"00", "10"}

"""Tokenizer, words, augmentation, shards, batches, text and cards."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch

from phi4mm.inputs.audio import Waveform, log_mel
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.train.augment import STRETCH, change_pace, join, vary, vary_batch
from phi4mm.train.batches import by_length, collate
from phi4mm.train.card import write_cards
from phi4mm.train.cuts import word_spans
from phi4mm.train.data import HELD_OUT_FSDD, Clip, speech_corpora
from phi4mm.train.export import in_float8
from phi4mm.train.files import write_rows
from phi4mm.train.fingerprint import fingerprint
from phi4mm.train.measure import Figure
from phi4mm.train.shards import Shard, write_single_numbers
from phi4mm.train.text import Corpus, TextTasks
from phi4mm.train.tokenizer import CONTROL_TOKENS, VOCABULARY_SIZE
from phi4mm.train.words import DIGITS, NUMBER_WORDS, OH, digit_sequence, number


def test_every_digit_is_one_token(tokenizer: Tokenizer) -> None:
    for word in (*DIGITS, OH):
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f" {word}")) == 1


@pytest.mark.parametrize("text", ["three five nine", "Zürich 42, <|end|>\n", "日本語 🎙"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_tokens_come_last(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.control(token) for token in CONTROL_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - len(CONTROL_TOKENS), tokenizer.vocab_size))
    assert tokenizer.vocab_size <= VOCABULARY_SIZE


def test_scripts_hold_only_number_words() -> None:
    random = Random(0)
    for _ in range(100):
        sequence = digit_sequence(random)
        assert 2 <= len(sequence) <= 8
        assert set(sequence) <= {*DIGITS, OH}
        assert set(number(random)) <= set(NUMBER_WORDS)


def test_varied_waveforms_can_be_heard() -> None:
    random = np.random.default_rng(0)
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    for _ in range(20):
        varied = vary(Waveform(tone, 16000), random)
        assert varied.sampling_rate in (8000, 16000)
        assert 0.3 < varied.duration < 2.0
        assert 0.01 < np.abs(varied.samples).max() < 1.5
        assert torch.isfinite(log_mel(varied)).all()


def test_joined_clips_follow_one_another() -> None:
    clip = np.ones(1600, np.float32)
    joined = join([clip] * 4, 8000, np.random.default_rng(0))
    assert 4 * 1600 - 3 * 320 <= len(joined) <= 4 * 1600 + 3 * 2400


def test_batches_vary_within_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 8 + torch.rand(6, 50, 80)
    features[0, :, 40:] = 0  # 8 kHz
    varied = vary_batch(features, generator)
    assert varied.shape == features.shape
    assert torch.isfinite(varied).all()
    assert not torch.equal(varied[1], varied[2])
    assert varied.min() >= 0
    assert (varied[0, :, 40:] == 0).float().mean() > 0.6  # but for masked moments and bands
    torch.testing.assert_close(vary_batch(features, generator, strength=0.0), features)


def test_shards_give_back_what_was_written(shard: Path) -> None:
    opened = Shard(shard, NUMBER_WORDS)
    assert len(opened) == 6
    assert opened[3].words == ("oh", "nine", "nine")
    assert opened[3].features.shape == (120, 80)


def test_single_numbers_leave_out_all_else_and_are_mostly_at_8_khz(tmp_path: Path) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    texts = [("six",), ("six", "two"), ("yes",), *[("nine",)] * 20]
    clips = [Clip(path, words, "someone", "an4 words") for words in texts]
    write_single_numbers([tmp_path / "0.safetensors"], clips, NUMBER_WORDS)
    numbers = list(Shard(tmp_path / "0.safetensors", NUMBER_WORDS))
    assert [number.words for number in numbers] == [("six",), *[("nine",)] * 20]
    at_8_khz = [not number.features[:, -1].any() for number in numbers]
    assert 10 < sum(at_8_khz) < 21


def test_matrices_are_near_in_float8_and_vectors_are_as_they_were() -> None:
    matrix = torch.randn(40, 40, generator=torch.manual_seed(0))
    found = in_float8({"matrix": matrix, "vector": matrix[0]})
    assert torch.equal(found["vector"], matrix[0])
    assert found["matrix"].dtype == torch.float8_e4m3fn
    nearest = (matrix.abs() / 16).clamp(min=1 / 1024)
    assert ((found["matrix"].float() - matrix).abs() <= nearest).all()


def test_groups_hold_every_item_once_within_the_budget(shard: Path) -> None:
    lengths = [40, 40, 80, 120, 0, 40, 500]
    groups = list(by_length(lengths, 200, torch.Generator().manual_seed(0)))
    assert sorted(index for group in groups for index in group) == [0, 1, 2, 3, 5, 6]
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= 200
    batch = collate([Shard(shard, NUMBER_WORDS)[index] for index in (0, 2)])
    assert batch.features.shape == (2, 80, 80)
    assert batch.num_frames.tolist() == [40, 80]


def test_text_tasks_end_their_answers(tokenizer: Tokenizer, corpus: Corpus) -> None:
    tasks, random = TextTasks(tokenizer, corpus), Random(0)
    ends = (tokenizer.control("<|end|>"), tokenizer.control("<|endoftext|>"))
    seen = set()
    for _ in range(300):
        example = tasks.draw(random)
        seen.add(example.task)
        assert 0 < example.answer_start < len(example.token_ids)
        assert example.token_ids[-1] in ends
    assert seen == {name for name, _, _ in tasks.tasks}


def test_held_out_speakers_are_not_trained_on(tmp_path: Path) -> None:
    for name, speakers in (("fsdd", ["george", *HELD_OUT_FSDD]), ("an4", [f"s{i:02}" for i in range(20)])):
        rows = [{"audio_filepath": f"{who}.flac", "text": "ONE", "speaker": who} for who in speakers]
        write_rows(tmp_path / name / "train.jsonl", rows)
    cut = [{"audio_filepath": f"{who}.flac", "text": "one", "speaker": who} for who in ("s00", "s01")]
    write_rows(tmp_path / "words" / "manifest.jsonl", cut)
    split = speech_corpora(tmp_path, tmp_path / "words", tmp_path / "no voices")
    trained = {clip.speaker for clip in split.train}
    held_out = {clip.speaker for clips in split.held_out.values() for clip in clips}
    assert held_out == {*HELD_OUT_FSDD, "s00", "s10"}
    assert not trained & held_out
    assert len(trained) == 19
    assert [clip.speaker for clip in split.train if clip.corpus == "an4 words"] == ["s01"]


def test_fingerprint_sees_every_byte_and_name() -> None:
    tensors = {"a": torch.zeros(2, 2), "b": torch.ones(3, dtype=torch.bfloat16)}
    found = fingerprint(tensors)
    assert found == fingerprint(dict(reversed(tensors.items())))
    changed = tensors["a"].clone()
    changed[1, 1] = 1e-30
    assert fingerprint({**tensors, "a": changed}) != found
    assert fingerprint({"a": tensors["a"], "c": tensors["b"]}) != found


def test_pace_varies_within_its_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(100, 80)
    varied = [change_pace(features, generator) for _ in range(50)]
    assert all(100 * np.exp(-STRETCH) - 1 <= len(one) <= 100 * np.exp(STRETCH) + 1 for one in varied)
    assert len({len(one) for one in varied}) > 20
    for one in varied:
        torch.testing.assert_close(one[[0, -1]], features[[0, -1]])
    torch.testing.assert_close(change_pace(features, generator, strength=0.0), features)


def test_cards_tell_the_figures(config: Phi4MMConfig, tmp_path: Path) -> None:
    figures = [
        Figure("WER", "fsdd", "as recorded", 0.0321, 500, 500),
        Figure("WER", "fsdd", "no adapter", 0.9, 500, 500),
        Figure("WER", "fsdd", "vision adapter", 0.8, 500, 500),
        Figure("accuracy", "easy_vqa", "as routed", 0.971, 3850, 0),
        Figure("WER", "read speech", "as recorded", 0.95, 60, 900),
        Figure("error", "word times", "start", 0.013, 80, 80),
        Figure("error", "word times", "end", 0.017, 80, 80),
    ]
    write_cards(tmp_path, config, figures, ["flite-slt", "flite-awb"], "0123abcd")
    card = (tmp_path / "assets" / "README.md").read_text(encoding="utf-8")
    assert "| 500 | 500 | 3.2 % |" in card
    assert "| 3850 | 97.1 % |" in card
    speech = (tmp_path / "adapters" / "speech" / "README.md").read_text(encoding="utf-8")
    assert "| 3.2 % | 90.0 % | 80.0 % |" in speech
    assert "CC BY-SA 4.0" in card
    assert "flite (2: slt, awb)" in card
    for folder in ("assets", "adapters/speech", "adapters/vision"):
        assert "0123abcd" in (tmp_path / folder / "README.md").read_text(encoding="utf-8")


def test_words_are_cut_where_there_are_pauses_between_all_of_them() -> None:
    rate = 16000
    random = np.random.default_rng(0)
    sound, pause = random.normal(0, 0.1, rate // 4), random.normal(0, 1e-4, rate // 3)
    samples = np.concatenate([pause, sound, pause, sound, pause]).astype(np.float32)
    spans = word_spans(samples, rate, 2)
    assert spans is not None
    starts = [len(pause), 2 * len(pause) + len(sound)]
    for (start, end), expected in zip(spans, starts, strict=True):
        assert abs(start - expected) < 0.03 * rate
        assert abs(end - expected - len(sound)) < 0.03 * rate
    assert word_spans(samples, rate, 3) is None

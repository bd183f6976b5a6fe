"""A tiny recipe: random log-mels of digits, and the smallest model with the shipped architecture."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig
from phi4mm.train.config import small_config
from phi4mm.train.shards import Utterance, write_shard
from phi4mm.train.text import Corpus
from phi4mm.train.tokenizer import train_tokenizer
from phi4mm.train.words import NUMBER_WORDS
from tests import second_device

if os.environ.get("PHI4MM_TEST_DEVICE") == second_device.NAME:
    second_device.install()
DEVICE = torch.device(os.environ.get("PHI4MM_TEST_DEVICE", "cpu"))  # "cuda"; "second": see tests/second_device.py


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    question = ("what color is the shape?", "blue", "blue", "circle")
    return Corpus(("enter six two four", "a plain sentence of a book"), ("a", "b", *NUMBER_WORDS), (question,))


@pytest.fixture(scope="session")
def tokenizer_file(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(corpus.all_texts(), corpus.all_words(), file)
    return file


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> Phi4MMConfig:
    config = small_config(tokenizer)
    assert config.speech is not None
    speech = replace(config.speech, hidden_size=16, intermediate_size=16, num_blocks=1, subsampling_channels=4)
    assert config.vision is not None
    vision = replace(config.vision, hidden_size=16, intermediate_size=16, num_layers=2)
    return replace(config, decoder=replace(config.decoder, num_layers=1), speech=speech, vision=vision)


@pytest.fixture(scope="session")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of one to three words."""
    path = tmp_path_factory.mktemp("shard") / "0.safetensors"
    generator = torch.Generator().manual_seed(0)
    words = [("one",), ("two",), ("three", "four"), ("oh", "nine", "nine"), ("five",), ("six",)]
    utterances = [Utterance((10 * torch.rand(40 * len(said), 80, generator=generator)).half(), said) for said in words]
    write_shard(path, utterances, NUMBER_WORDS)
    return path

"""What the tests share: a tiny random model, a tiny tokenizer, the bundled checkpoint, and the folder of data."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from phi4mm.api import Phi4MM
from phi4mm.engine.options import EngineOptions
from phi4mm.model.config import AdapterConfig, DecoderConfig, Phi4MMConfig, SpeechConfig, VisionConfig
from phi4mm.model.phi4mm import Phi4MMModel

settings.register_profile("thorough", max_examples=1000, deadline=None)  # --hypothesis-profile=thorough

DATA = Path(os.environ.get("PHI4MM_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))  # may be absent
CASES = DATA.parent / "cases"  # small files whose words and times are known; may be absent

CONTROL_TOKENS = (
    "<|endoftext|>", "<|endoftext10|>", "<|endoftext11|>", "<|endofprompt|>", "<|assistant|>", "<|end|>",
    "<|user|>", "<|system|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>",
    "<|tag|>",
)  # fmt: skip
NUM_BYTES = 256
CONTROL_IDS = {name: NUM_BYTES + index for index, name in enumerate(CONTROL_TOKENS)}

TINY = Phi4MMConfig(
    decoder=DecoderConfig(
        vocab_size=272,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        max_positions=2048,
        original_max_positions=1024,
        short_factor=(1.0,) * 6,
        long_factor=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        pad_token_id=CONTROL_IDS["<|endoftext|>"],
        stop_token_ids=(CONTROL_IDS["<|endoftext|>"], CONTROL_IDS["<|end|>"]),
    ),
    vision=VisionConfig(
        image_token_id=CONTROL_IDS["<|endoftext10|>"],
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_heads=2,
        image_size=56,
        patch_size=14,
        max_crops=6,
    ),
    speech=SpeechConfig(
        audio_token_id=CONTROL_IDS["<|endoftext11|>"],
        hidden_size=32,
        intermediate_size=48,
        num_blocks=2,
        num_heads=2,
        subsampling_channels=8,
        window_tokens=20,
    ),
    adapters=(AdapterConfig("vision", rank=4, alpha=8.0), AdapterConfig("speech", rank=8, alpha=16.0)),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=200, metavar="N", help="cases that each fuzzing test tries")
    parser.addoption("--requests", type=int, default=300, metavar="N", help="that a server's memory is watched over")
    parser.addoption("--schemas", type=int, default=30, help="random JSON schemas to try (default: 30)")


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter and buffer a random value, so that no part is trivially zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            centre = 1.0 if ("norm" in name and name.endswith("weight")) or name.endswith("inverse_std") else 0.0
            tensor.copy_(centre + noise * (0.2 if tensor.dim() > 1 else 0.1))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every model that a test made was closed, or nothing referred to it any more."""
    yield
    gc.collect()
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("phi4mm-engine", "phi4mm-read"))] == []


@pytest.fixture(scope="session")
def tiny_model() -> Phi4MMModel:
    """A random model with both towers and both adapters; not to be changed."""
    model = Phi4MMModel(TINY).eval().requires_grad_(False)
    randomise(model)
    return model


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes and the family's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [
        {
            "id": CONTROL_IDS[name],
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name in CONTROL_TOKENS
    ]
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(description), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(tiny_model: Phi4MMModel, tokenizer_file: Path) -> Iterator[Phi4MM]:
    """The tiny model with its engine; not to be changed."""
    with Phi4MM(tiny_model, tokenizer_file, options=EngineOptions(cache_tokens=1 << 14)) as model:
        yield model


@pytest.fixture(scope="session")
def bundled() -> Iterator[Phi4MM]:
    """The bundled checkpoint; not to be changed."""
    with Phi4MM.from_pretrained() as model:
        yield model


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of speech and pictures; tests that need it are skipped where it is absent."""
    folder = DATA
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set PHI4MM_DATA")
    return folder

"""Loading takes about as much memory as the checkpoint is large, measured in a process of its own."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phi4mm.checkpoint import save_checkpoint
from phi4mm.model.config import AdapterConfig
from phi4mm.model.phi4mm import Phi4MMModel
from tests.reference.transformers_port import small_config

MEASURE = """
import sys, torch
from phi4mm.checkpoint import load_checkpoint

def resident(key):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

load_checkpoint(sys.argv[1])  # imports and first-time costs are not the checkpoint's
for dtype in (torch.bfloat16, torch.float32):
    before = resident("VmRSS")
    model = load_checkpoint(sys.argv[2], dtype=dtype).model
    size = 0
    for tensor in model.state_dict().values():
        tensor.sum()  # a mapped page counts when it is touched
        size += tensor.nbytes
    print((resident("VmHWM") - before) / size)
    del model, tensor
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_the_size_of_the_model(tmp_path: Path) -> None:
    """The file is bfloat16, about 100 MB: loaded as it is, and widened on the way."""
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    config = small_config()
    decoder = dataclasses.replace(
        config.decoder, vocab_size=8000, hidden_size=768, intermediate_size=2048, num_layers=6, num_heads=48
    )
    adapters = (AdapterConfig("vision", 64, 128.0), AdapterConfig("speech", 80, 160.0))
    large = dataclasses.replace(config, decoder=decoder, adapters=adapters)
    for name, each in (("small", config), ("large", large)):
        with torch.device("meta"):
            model = Phi4MMModel(each)
        save_checkpoint(
            model.bfloat16().to_empty(device="cpu"),  # what the weights are does not matter here
            tmp_path / name,
            tokenizer_file=tokenizer,
        )
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    as_it_is, widened = map(float, result.stdout.split())
    assert as_it_is < 1.1
    assert widened < 1.3

"""What a machine without a GPU can tell of running on one: nothing is left on the CPU that belongs to the device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import second_device

MIXING = """
import torch
from tests.second_device import install

device = install()
weight, hidden = torch.ones(3, 3, device=device), torch.ones(2, 3)
assert torch.equal((hidden.to(device) @ weight).cpu(), hidden @ weight.cpu())
try:
    hidden @ weight
except RuntimeError as error:
    print(error)
"""

ANSWERS = """
import torch

torch.inference_mode = torch.no_grad  # a device made in Python cannot do it
from pathlib import Path
from phi4mm import Phi4MM, Request
from tests.second_device import install

device = install()
samples = Path("assets/samples")
requests = [
    Request("what comes after three?"),
    Request("Transcribe the audio clip into text.", audios=[samples / "telephone.flac"]),
    Request("what shape is in the image?", images=[samples / "shape.png"]),
    Request("", images=[samples / "shape.png"], audios=[samples / "question.flac"]),
    Request.make("what comes after four?", temperature=1.0, top_p=0.9, top_k=5, repetition_penalty=1.1, seed=3),
]
with Phi4MM.from_pretrained(device=device, dtype="float32") as model:
    assert model.model.device.type == device.type
    there = model.chat_batch(requests)
with Phi4MM.from_pretrained(device="cpu", dtype="float32") as model:
    here = model.chat_batch(requests)
assert [reply.text for reply in there] == [reply.text for reply in here]
print("the same", len(there))
"""


STAGES = """
import sys
import pytest
import torch

torch.inference_mode = torch.no_grad  # see above
files = "tests/train/test_stages.py", "tests/train/test_consistency.py"
sys.exit(pytest.main([*files, "-p", "no:cacheprovider"]))
"""


def run(*arguments: str) -> str:
    environment = os.environ | {"PHI4MM_TEST_DEVICE": second_device.NAME}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_device_refuses_tensors_of_the_cpu() -> None:
    assert "expected all tensors on one device" in run("-c", MIXING)


@pytest.mark.slow
def test_rows_of_every_modality_are_answered_on_the_device() -> None:
    assert "the same 5" in run("-c", ANSWERS)


@pytest.mark.slow
def test_every_stage_trains_on_the_device() -> None:
    assert "13 passed" in run("-c", STAGES)

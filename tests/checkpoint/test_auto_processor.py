"""transformers' ``AutoProcessor`` reads a folder that was saved in its layout, and makes the inputs that ours makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor

from phi4mm.checkpoint import save_checkpoint
from phi4mm.inputs.processor import Processor
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request
from tests.conftest import TINY


def test_auto_processor(tokenizer_file: Path, tmp_path: Path) -> None:
    assert TINY.vision is not None
    assert TINY.speech is not None
    vision = replace(TINY.vision, image_size=448)  # transformers counts the tokens of an image of this size alone
    config = replace(TINY, vision=vision, speech=replace(TINY.speech, window_tokens=500))
    folder = save_checkpoint(
        Phi4MMModel(config), tmp_path / "saved", tokenizer_file=tokenizer_file, layout="transformers"
    )
    theirs = AutoProcessor.from_pretrained(folder)
    assert type(theirs).__name__ == "Phi4MultimodalProcessor"
    assert theirs.image_processor.dynamic_hd == vision.max_crops
    assert theirs.tokenizer.pad_token == theirs.tokenizer.eos_token == "<|endoftext|>"

    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 255, (300, 500, 3), dtype=np.uint8))
    sound = generator.normal(size=16000).astype(np.float32) / 10
    user = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "What is it?"}]
    messages = [
        {"role": "system", "content": "Be kind.", "tools": "[]"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": user},
    ]
    text = theirs.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Be kind.<|tool|>[]<|/tool|><|end|><|user|>a<|end|><|assistant|>b<|end|>"
        "<|user|><|endoftext10|><|endoftext11|>What is it?<|end|><|assistant|>"
    )
    messages[0].pop("tools")
    text = theirs.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = theirs(text=text, images=[picture], audio=[sound], sampling_rate=16000, return_tensors="pt")
    request = Request.make(
        "What is it?",
        system="Be kind.",
        history=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        images=[picture],
        audios=[(sound, 16000)],
    )
    batch = Processor(config, Tokenizer(tokenizer_file))([request])
    assert torch.equal(inputs["input_ids"], batch.token_ids)
    assert batch.images is not None
    assert batch.audios is not None
    assert inputs["image_pixel_values"][0].shape == batch.images.crops.shape
    torch.testing.assert_close(inputs["audio_input_features"], batch.audios.features, atol=1e-2, rtol=1e-3)

"""The whole model against transformers' port, from disk: logits within 1e-4, the same 32 greedy tokens.

Both sides load a checkpoint that one of them saved, and are given the same token ids and features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import Phi4MultimodalForCausalLM

from phi4mm.checkpoint import load_checkpoint, save_checkpoint
from phi4mm.inputs.image import prepare_image
from phi4mm.inputs.processor import Row
from phi4mm.model.batch import AudioBatch, Batch, ImageBatch
from phi4mm.model.config import DecoderConfig, Phi4MMConfig
from phi4mm.model.media import MediaItem, PreparedImage
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route
from tests.engine.real_rows import greedy
from tests.reference.transformers_port import add_adapters, make_pair, random_port, relative_error, small_config

NUM_NEW = 32


def wide_config() -> Phi4MMConfig:
    """Every case stays within the short rope factors: when a row crosses, the port loses its past."""
    config = small_config()
    return replace(config, decoder=replace(config.decoder, max_positions=4096, original_max_positions=2048))


@dataclass(frozen=True)
class Case:
    """One row: text around ``images`` (width, height) and ``clips`` (frames)."""

    adapter: str | None
    images: tuple[tuple[int, int], ...] = ()
    clips: tuple[int, ...] = ()


CASES = {
    "text": Case(None),
    "text, vision adapter": Case("vision"),
    "text, speech adapter": Case("speech"),
    "one image": Case("vision", images=((101, 37),)),
    "two images": Case("vision", images=((33, 150), (59, 57))),
    "image, adapter off": Case(None, images=((101, 37),)),
    "one clip": Case("speech", clips=(133,)),
    "two clips": Case("speech", clips=(97, 97)),
    "clip, adapter off": Case(None, clips=(133,)),
    "clip of 80 s, two windows": Case("speech", clips=(8000,)),
    "image and clip": Case("vision", images=((80, 60),), clips=(133,)),
}


class Loaded:
    """Ours and transformers' model, both read from one folder that either wrote."""

    def __init__(self, folder: Path) -> None:
        self.ours: Phi4MMModel = load_checkpoint(folder).model
        base = Phi4MultimodalForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.theirs = PeftModel.from_pretrained(base, folder / "vision-lora", adapter_name="vision")
        self.theirs.load_adapter(folder / "speech-lora", adapter_name="speech")

    @contextmanager
    def port(self, adapter: str | None) -> Iterator[Any]:
        if adapter is None:
            with self.theirs.disable_adapter():
                yield self.theirs.base_model.model
        else:
            self.theirs.set_adapter(adapter)
            yield self.theirs.base_model.model


@pytest.fixture(scope="module", params=["saved by ours", "saved by transformers"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Loaded:
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    if request.param == "saved by ours":
        ours = make_pair(wide_config()).ours
        save_checkpoint(ours, folder, tokenizer_file=tokenizer_file, layout="transformers")
    else:
        port = random_port(wide_config(), seed=5)
        port.save_pretrained(folder)
        adapted = add_adapters(port, wide_config(), seed=6)
        adapted.save_pretrained(folder)
        for name in ("vision", "speech"):
            (folder / name).rename(folder / f"{name}-lora")
        (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return Loaded(folder)


def make_inputs(case: Case, config: Phi4MMConfig) -> tuple[Row, Batch, dict[str, Any]]:
    """The same row for our engine, as our batch and as transformers' arguments."""
    assert config.vision is not None
    assert config.speech is not None
    random = np.random.default_rng(0)
    images = [
        prepare_image(Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)), config.vision)
        for width, height in case.images
    ]
    clips = [torch.from_numpy(random.normal(5, 3, (frames, 80)).astype(np.float32)) for frames in case.clips]
    projector = ("vision" if images else "speech") if clips else None
    token_ids = random.integers(0, 280, 5).tolist()
    media = []
    for number, image in enumerate(images):
        digest = f"image {number}".encode()
        media.append(MediaItem("image", image, "image", image.num_tokens, len(token_ids), digest))
        token_ids += [config.vision.image_token_id] * image.num_tokens + random.integers(0, 280, 2).tolist()
    for number, clip in enumerate(clips):
        size, digest = config.speech.num_tokens(len(clip)), f"clip {number}".encode()
        media.append(MediaItem("audio", clip, projector or "", size, len(token_ids), digest))
        token_ids += [config.speech.audio_token_id] * size
    token_ids += random.integers(0, 280, 4).tolist()

    route = Route((case.adapter,) if case.adapter else (), projector)
    batch = Batch(token_ids=torch.tensor([token_ids]), lengths=torch.tensor([len(token_ids)]), routes=(route,))
    theirs: dict[str, Any] = {"input_ids": batch.token_ids}
    if images:
        batch = replace(
            batch,
            images=ImageBatch(
                torch.cat([image.crops for image in images]),
                torch.cat([image.masks for image in images]),
                tuple(image.grid for image in images),
            ),
        )
        theirs |= port_images(images, config.vision.image_size)
    if clips:
        frames = torch.tensor([len(clip) for clip in clips])
        batch = replace(batch, audios=AudioBatch(torch.stack(clips), frames, (0,) * len(clips)))
        theirs |= {
            "audio_input_features": torch.stack(clips),
            "audio_embed_sizes": torch.tensor([config.speech.num_tokens(len(clip)) for clip in clips]),
            "audio_attention_mask": torch.ones(len(clips), len(clips[0]), dtype=torch.bool),
        }
    return Row(tuple(token_ids), route, tuple(media)), batch, theirs


def port_images(images: list[PreparedImage], crop_size: int) -> dict[str, torch.Tensor]:
    """Images as transformers' processor hands them on: crops padded to the same number, masks with ones."""
    num_crops = max(len(image.crops) for image in images)
    pixels = torch.zeros(len(images), num_crops, *images[0].crops.shape[1:])
    masks = torch.ones(len(images), num_crops, *images[0].masks.shape[1:], dtype=torch.bool)
    for index, image in enumerate(images):
        pixels[index, : len(image.crops)] = image.crops
        masks[index, : len(image.masks)] = image.masks
    sizes = torch.tensor([image.grid for image in images]) * crop_size
    return {"image_pixel_values": pixels, "image_attention_mask": masks, "image_sizes": sizes}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_greedy_tokens(loaded: Loaded, name: str) -> None:
    case = CASES[name]
    row, batch, theirs = make_inputs(case, loaded.ours.config)
    logits = loaded.ours(batch)
    [ours] = greedy(loaded.ours, [row], NUM_NEW)
    with loaded.port(case.adapter) as port:
        assert relative_error(logits, port(**theirs).logits) < 1e-4
        port.generation_config.pad_token_id = loaded.ours.config.decoder.pad_token_id
        tokens = port.generate(**theirs, max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False)
    expected = tokens[0, batch.token_ids.shape[1] :].tolist()
    assert len(expected) == NUM_NEW
    assert ours == expected


def test_full_size_decoder_layer_in_bfloat16() -> None:
    """Ours and theirs differ from float32 by as much as bfloat16 does, and from each other by no more."""
    from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalDecoderLayer

    from phi4mm.model.decoder import DecoderLayer
    from phi4mm.model.rope import rotary_tables
    from tests.reference.transformers_port import port_config

    config = DecoderConfig(num_layers=1)
    torch.manual_seed(0)
    ours = DecoderLayer(config, 0)
    names = port_config(replace(Phi4MMConfig(), decoder=config))
    names._attn_implementation = "sdpa"
    theirs = Phi4MultimodalDecoderLayer(names, 0)
    theirs.load_state_dict(
        {
            name.replace("attention.", "self_attn.")
            .replace("input_norm", "input_layernorm")
            .replace("post_attention_norm", "post_attention_layernorm"): value
            for name, value in ours.state_dict().items()
        }
    )
    hidden = torch.randn(1, 40, config.hidden_size)
    tables = rotary_tables(config, torch.arange(40)[None], torch.tensor([False]))
    with torch.no_grad():
        exact = ours(hidden, tables, None, None, None)
        ours, theirs, hidden = ours.bfloat16(), theirs.bfloat16(), hidden.bfloat16()
        rounded = tuple(table.bfloat16() for table in tables)
        result = ours(hidden, rounded, None, None, None)
        expected = theirs(hidden, position_embeddings=rounded, attention_mask=None)
    rounding = float((expected - exact).norm() / exact.norm())
    assert 0 < rounding < 2**-7
    assert float((result - exact).norm() / exact.norm()) < 1.2 * rounding
    assert float((result - expected).norm() / exact.norm()) < 2**-7

"""What the GPU program runs on: the device, models of three kinds, and inputs that need no file and no decoder."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.engine.cuda_graphs import CompiledRunner, CompileFunction, compile_step, plain_step
from phi4mm.engine.options import EngineOptions
from phi4mm.engine.runner import MakeRunner, ModelRunner
from phi4mm.model.config import AdapterConfig, DecoderConfig, Phi4MMConfig, SpeechConfig, VisionConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Request

TINY = Phi4MMConfig(
    decoder=DecoderConfig(
        vocab_size=1600,
        hidden_size=96,
        intermediate_size=160,
        num_layers=2,
        num_heads=6,  # three of which share a key, as at full size
        num_kv_heads=2,
        max_positions=2048,
        original_max_positions=256,
        short_factor=(1.0,) * 6,
        long_factor=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    ),
    vision=VisionConfig(hidden_size=32, intermediate_size=48, num_layers=3, num_heads=2, image_size=56, max_crops=4),
    speech=SpeechConfig(hidden_size=32, intermediate_size=48, num_blocks=2, num_heads=2, subsampling_channels=8),
    adapters=(AdapterConfig("vision", rank=4, alpha=8.0), AdapterConfig("speech", rank=8, alpha=16.0)),
)


@dataclass(frozen=True)
class Setting:
    """How large everything is.

    Attributes:
        device: that is checked.
        config: of the large model.
        dtype: of the large model.
        rows: batch sizes that are decoded.
        context: tokens that each row has.
        prompt_tokens: that are prefilled at once.
        new_tokens: for each row of what goes through the engine.
        num_clips, clip_seconds: of the ASR job.
        cache_tokens: of the large model's KV cache.
        copied_bytes, matrix_size: of what measures the device's limits.
        compile_function: makes a compiled layer of a plain one.
    """

    device: torch.device
    config: Phi4MMConfig
    dtype: torch.dtype
    rows: tuple[int, ...]
    context: int
    prompt_tokens: int
    new_tokens: int
    num_clips: int
    clip_seconds: float
    cache_tokens: int
    copied_bytes: int
    matrix_size: int
    compile_function: CompileFunction

    @property
    def preset(self) -> cases.Preset:
        return cases.Preset(None, num_clips=self.num_clips, new_tokens=self.new_tokens)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give back the memory of what was let go."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def runner(self, how: str, max_rows: int) -> MakeRunner:
        """What decodes: "plain", "captured" in CUDA graphs, or "compiled" and captured."""
        if how == "plain":
            return ModelRunner
        compile_function = self.compile_function if how == "compiled" else plain_step
        return partial(CompiledRunner, max_rows=max_rows, compile_function=compile_function)

    def phi(self, model: Phi4MMModel, how: str = "captured", *, cache_tokens: int | None = None) -> Phi4MM:
        """A model with an engine of its own."""
        options = EngineOptions.on(self.device, cache_tokens=cache_tokens or self.cache_tokens, max_rows=max(self.rows))
        make_runner = self.runner(how, options.max_rows)
        return Phi4MM(model, cases.bundled_tokenizer(), options=options, make_runner=make_runner)


def full_setting(device: torch.device) -> Setting:
    """Microsoft's sizes on a GPU."""
    return Setting(
        device=device,
        config=cases.with_bundled_tokens(Phi4MMConfig()),
        dtype=torch.bfloat16,
        rows=(1, 8, 64),
        context=512,
        prompt_tokens=4096,
        new_tokens=64,
        num_clips=128,
        clip_seconds=10.0,
        cache_tokens=65536,
        copied_bytes=2 << 30,
        matrix_size=8192,
        compile_function=compile_step,
    )


def tiny_setting(device: torch.device) -> Setting:
    """Everything in small: to test the program itself."""
    return Setting(
        device=device,
        config=cases.with_bundled_tokens(TINY),
        dtype=torch.float32,
        rows=(1, 4),
        context=64,
        prompt_tokens=128,
        new_tokens=4,
        num_clips=4,
        clip_seconds=1.0,
        cache_tokens=1024,
        copied_bytes=1 << 24,
        matrix_size=256,
        compile_function=partial(torch.compile, backend="eager", fullgraph=True, dynamic=False),
    )


def requests(seconds: float = 1.5) -> list[Request]:
    """One request of each modality: noise under a tone, and a picture of noise."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    picture, clip = Image.fromarray(pixels), (cases.clip(seconds), cases.SAMPLING_RATE)
    return [
        Request("What do you know?"),
        Request("What is it?", images=[picture]),
        Request(cases.PROMPT, audios=[clip]),
        Request("Answer.", images=[picture], audios=[clip]),
    ]


def clips(setting: Setting) -> list[np.ndarray]:
    return [cases.clip(setting.clip_seconds, seed) for seed in range(setting.num_clips)]


def exact(function: Callable[[], None]) -> None:
    """Run it with float32 products in float32, convolutions included."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        function()
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]

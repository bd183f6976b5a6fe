"""The sizes of the bundled checkpoint: the reference's architecture, small."""

from __future__ import annotations

from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import (
    AdapterConfig,
    DecoderConfig,
    FrontEndConfig,
    Phi4MMConfig,
    SpeechConfig,
    VisionConfig,
)
from phi4mm.train.tokenizer import AUDIO_TOKEN, END_TOKEN, IMAGE_TOKEN, PAD_TOKEN

MAX_CROPS = 4  # as many as the recipe's pictures have: larger ones are scaled down to what was trained on
NUM_ROTATED_PAIRS = 12  # of a head of 32, three quarters rotated


def small_config(tokenizer: Tokenizer) -> Phi4MMConfig:
    """About 6 million parameters; the LongRoPE factors are every fourth of the reference's."""
    long_factor = DecoderConfig().long_factor[3::4]
    pad = tokenizer.control(PAD_TOKEN)
    return Phi4MMConfig(
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=192,
            intermediate_size=512,
            num_layers=4,
            num_heads=6,
            num_kv_heads=2,
            short_factor=(1.0,) * NUM_ROTATED_PAIRS,
            long_factor=long_factor,
            pad_token_id=pad,
            stop_token_ids=(pad, tokenizer.control(END_TOKEN)),
        ),
        vision=VisionConfig(
            image_token_id=tokenizer.control(IMAGE_TOKEN),
            hidden_size=128,
            intermediate_size=256,
            num_layers=5,
            num_heads=4,
            image_size=64,
            patch_size=8,
            max_crops=MAX_CROPS,
        ),
        speech=small_speech_config(tokenizer.control(AUDIO_TOKEN)),
        adapters=(AdapterConfig("vision", rank=32, alpha=64.0), AdapterConfig("speech", rank=32, alpha=64.0)),
        front_end=FrontEndConfig(max_seconds=8.0, detect_narrow_band=True, peak_level=0.3),
    )


def small_speech_config(audio_token_id: int) -> SpeechConfig:
    return SpeechConfig(
        audio_token_id=audio_token_id,
        hidden_size=144,
        intermediate_size=288,
        num_blocks=6,
        num_heads=4,
        subsampling_channels=32,
    )

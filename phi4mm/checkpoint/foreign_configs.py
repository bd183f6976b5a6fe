"""The ``config.json`` of the layouts of Microsoft, transformers and Phi-3, as parts of our configuration.

Keys that would change the mathematics have the only values that this package computes (``Literal``); keys that are not
named here change nothing.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from phi4mm.checkpoint.schema import (
    Alpha,
    Crops,
    Distance,
    Dropout,
    Epsilon,
    Factors,
    FeatureLayer,
    Fraction,
    Heads,
    ImageSide,
    KernelSize,
    Layers,
    Mels,
    PatchSide,
    Positions,
    Rank,
    Section,
    Theta,
    TimeReduction,
    TokenId,
    TokenIds,
    Vocabulary,
    Width,
    Window,
)
from phi4mm.model.config import AdapterConfig, DecoderConfig, SpeechConfig, VisionConfig
from phi4mm.model.rope import rotary_scale

_END_OF_TURN = 200020  # "<|end|>": Microsoft's code stops there, whatever is in config.json


class _Rope(Section):
    rope_type: Literal["default", "longrope", "su", "yarn"] | None = None
    type: Literal["default", "longrope", "su", "yarn"] | None = None  # the older name
    short_factor: Factors | None = None
    long_factor: Factors | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: Fraction | None = None
    original_max_position_embeddings: Positions | None = None
    factor: float | None = None
    attention_factor: float | None = None


class Phi3File(Section):
    """The decoder's keys, which the three layouts share, with the defaults of transformers' classes."""

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: int | None = None
    max_position_embeddings: Positions
    original_max_position_embeddings: Positions | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None  # the older name
    rope_theta: Theta = 10000.0
    partial_rotary_factor: Fraction = 1.0
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Window | None = None
    tie_word_embeddings: bool = False
    eos_token_id: TokenIds | None = None
    pad_token_id: TokenId | None = None
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    lm_head_bias: Literal[False] = False
    full_attn_mod: Literal[1] = 1
    interpolate_factor: Literal[1] = 1


class GenerationFile(Section):
    """``generation_config.json``."""

    eos_token_id: TokenIds | None = None


class ImageProcessor(Section):
    """``preprocessor_config.json``, of which only the number of crops can differ."""

    dynamic_hd: Crops | None = None


class ProcessorFile(Section):
    """``processor_config.json``, in which newer versions of transformers put the image processor's settings."""

    image_processor: ImageProcessor = ImageProcessor()


class _ImageKeys(Section):
    """What may stand in transformers' vision_config or in Microsoft's image_embd_layer."""

    crop_size: int | None = None
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    use_hd_transform: Literal[True] = True
    hd_transform_order: Literal["sub_glb"] = "sub_glb"
    image_token_compression_cls: Literal["avg_pool_2d"] = "avg_pool_2d"
    projection_cls: Literal["mlp"] = "mlp"
    with_learnable_separator: Literal[True] = True


class _VisionTower(_ImageKeys):
    image_token_id: TokenId = VisionConfig.image_token_id
    hidden_size: Width = VisionConfig.hidden_size
    intermediate_size: Width = VisionConfig.intermediate_size
    num_hidden_layers: Layers = VisionConfig.num_layers
    num_attention_heads: Heads = VisionConfig.num_heads
    num_channels: Literal[3] = 3
    image_size: ImageSide = VisionConfig.image_size
    patch_size: PatchSide = VisionConfig.patch_size
    layer_norm_eps: Epsilon = VisionConfig.norm_eps
    feature_layer: FeatureLayer = VisionConfig.feature_layer


class _AudioKeys(Section):
    """What may stand in transformers' audio_config or in Microsoft's audio_embd_layer and audio_processor."""

    activation: Literal["swish", "silu"] = "swish"
    conv_activation: Literal["swish", "silu"] = "swish"
    conv_glu_type: Literal["swish", "silu"] = "swish"
    nemo_activation: Literal["relu"] = "relu"
    chunk_size: Literal[-1, 0] = -1
    depthwise_multiplier: Literal[1] = 1
    downsample_rate: Literal[1] = 1
    input_layer: Literal["nemo_conv"] = "nemo_conv"
    ext_pw_kernel_size: Literal[1] = 1
    batch_norm: Literal[False] = False
    bias_in_glu: Literal[True] = True
    causal: Literal[True] = True
    cnn_layer_norm: Literal[True] = True
    projection_cls: Literal["mlp"] = "mlp"
    use_qformer: Literal[False] = False
    use_conv_downsample: Literal[False] = False


class _AudioTower(_AudioKeys):
    audio_token_id: TokenId = SpeechConfig.audio_token_id
    num_blocks: Layers = SpeechConfig.num_blocks
    time_reduction: TimeReduction = SpeechConfig.time_reduction
    kernel_size: KernelSize = SpeechConfig.conv_kernel_size
    ext_pw_out_channel: int | None = None
    depthwise_separable_out_channel: int | None = None
    depthwise_seperable_out_channel: int | None = None


class _TransformersAudio(_AudioTower):
    input_size: Mels = SpeechConfig.num_mels
    hidden_size: Width = SpeechConfig.hidden_size
    intermediate_size: Width = SpeechConfig.intermediate_size
    num_attention_heads: Heads = SpeechConfig.num_heads
    nemo_conv_channels: Width = SpeechConfig.subsampling_channels
    bias_max_distance: Distance = 1000
    bias_symmetric: bool = False


class TransformersFile(Phi3File):
    """Of ``Phi4MultimodalForCausalLM``; it may lack what equals transformers' defaults: ours, but for one."""

    vision_config: _VisionTower = _VisionTower()
    audio_config: _TransformersAudio = _TransformersAudio()


class _Convolutions(Section):
    conv_channels: Width
    subsampling: Literal["dw_striding"] = "dw_striding"
    is_causal: Literal[False] = False


class _RelativeBias(Section):
    t5_bias_max_distance: Distance
    t5_bias_symmetric: bool = False
    type: Literal["t5"] = "t5"


class _MicrosoftAudio(_AudioTower):
    input_size: Mels
    attention_dim: Width
    attention_heads: Heads
    linear_units: Width
    num_blocks: Layers
    nemo_conv_settings: _Convolutions
    relative_attention_bias_args: _RelativeBias


class _AudioProcessor(Section):
    name: Literal["cascades"] = "cascades"
    config: _MicrosoftAudio


class _Embedding(Section):
    embedding_cls: Literal["image_audio"] = "image_audio"
    audio_embd_layer: _AudioKeys = _AudioKeys()
    image_embd_layer: _ImageKeys = _ImageKeys()


class _Lora(Section):
    r: Rank
    lora_alpha: Alpha
    dp: Dropout = 0.0


class MicrosoftFile(Phi3File):
    """Microsoft's. The vision tower's shape is not in its own file: it is so400m-448 unless ``vision_config`` is there.

    Token ids are not there either; ``vision_config.image_token_id`` and ``audio_processor.config.audio_token_id`` may
    give other ones than the usual.
    """

    embd_layer: _Embedding
    audio_processor: _AudioProcessor
    vision_config: _VisionTower = _VisionTower()
    vision_lora: _Lora
    speech_lora: _Lora


def decoder_config(file: Phi3File, generation: GenerationFile) -> DecoderConfig:
    """The decoder.

    Raises:
        ValueError: sizes contradict each other, or a LongRoPE lacks its factors.
    """
    num_heads = file.num_attention_heads
    _same("head_dim", file.head_dim, file.hidden_size // num_heads)
    rope = file.rope_parameters or file.rope_scaling or _Rope()
    is_long = (rope.rope_type or rope.type or "default") != "default"  # Phi's files meant LongRoPE by all other names
    if is_long and not (rope.short_factor and rope.long_factor):
        raise ValueError("a LongRoPE needs short_factor and long_factor, and one is missing")
    stops = _ids(file.eos_token_id) + _ids(generation.eos_token_id)
    if isinstance(file, MicrosoftFile) and file.vocab_size > _END_OF_TURN:
        stops += (_END_OF_TURN,)
    pad = file.pad_token_id if file.pad_token_id is not None else (*stops, 0)[0]
    config = DecoderConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_layers=file.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=file.num_key_value_heads or num_heads,
        norm_eps=file.rms_norm_eps,
        max_positions=file.max_position_embeddings,
        original_max_positions=file.original_max_position_embeddings or rope.original_max_position_embeddings or 4096,
        rope_theta=rope.rope_theta or file.rope_theta,
        partial_rotary_factor=rope.partial_rotary_factor or file.partial_rotary_factor,
        short_factor=tuple(rope.short_factor or ()) if is_long else (),
        long_factor=tuple(rope.long_factor or ()) if is_long else (),
        sliding_window=file.sliding_window,
        tie_embeddings=file.tie_word_embeddings,
        pad_token_id=pad,
        stop_token_ids=tuple(dict.fromkeys(stops)) or (pad,),
    )
    if is_long:
        follows = {
            "factor": config.max_positions / config.original_max_positions,
            "attention_factor": rotary_scale(config),
        }
        for key, value in follows.items():
            given = getattr(rope, key)
            if given is not None and not math.isclose(given, value, rel_tol=1e-6):
                raise ValueError(f"{key} is {given}, expected {value:g}, which follows from max_position_embeddings")
    return config


def vision_config(file: TransformersFile | MicrosoftFile, max_crops: int) -> VisionConfig:
    """The vision tower.

    Raises:
        ValueError: sizes contradict each other.
    """
    tower = file.vision_config
    keys = file.embd_layer.image_embd_layer if isinstance(file, MicrosoftFile) else tower
    _same("crop_size", keys.crop_size, tower.image_size)
    return VisionConfig(
        image_token_id=tower.image_token_id,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.num_hidden_layers,
        num_heads=tower.num_attention_heads,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        norm_eps=tower.layer_norm_eps,
        feature_layer=tower.feature_layer,
        max_crops=max_crops,
    )


def speech_config(file: TransformersFile | MicrosoftFile) -> SpeechConfig:
    """The speech tower.

    Raises:
        ValueError: sizes contradict each other.
    """
    tower: _TransformersAudio | _MicrosoftAudio
    sizes: dict[str, Any]
    if isinstance(file, MicrosoftFile):
        tower = ours = file.audio_processor.config
        sizes = {
            "hidden_size": ours.attention_dim,
            "num_heads": ours.attention_heads,
            "intermediate_size": ours.linear_units,
            "subsampling_channels": ours.nemo_conv_settings.conv_channels,
            "bias_max_distance": ours.relative_attention_bias_args.t5_bias_max_distance,
            "bias_symmetric": ours.relative_attention_bias_args.t5_bias_symmetric,
        }
    else:
        tower = theirs = file.audio_config
        sizes = {
            "hidden_size": theirs.hidden_size,
            "num_heads": theirs.num_attention_heads,
            "intermediate_size": theirs.intermediate_size,
            "subsampling_channels": theirs.nemo_conv_channels,
            "bias_max_distance": theirs.bias_max_distance,
            "bias_symmetric": theirs.bias_symmetric,
        }
    for key in ("ext_pw_out_channel", "depthwise_separable_out_channel", "depthwise_seperable_out_channel"):
        _same(key, getattr(tower, key), sizes["hidden_size"])
    return SpeechConfig(
        audio_token_id=tower.audio_token_id,
        num_mels=tower.input_size,
        num_blocks=tower.num_blocks,
        time_reduction=tower.time_reduction,
        conv_kernel_size=tower.kernel_size,
        **sizes,
    )


def microsoft_adapters(file: MicrosoftFile) -> tuple[AdapterConfig, ...]:
    """The two adapters, which lie in Microsoft's main file."""
    loras = {"vision": file.vision_lora, "speech": file.speech_lora}
    return tuple(AdapterConfig(name, lora.r, lora.lora_alpha, lora.dp) for name, lora in loras.items())


def _same(key: str, value: int | None, expected: int) -> None:
    if value not in (None, expected):
        raise ValueError(f"{key} is {value}, but only {expected} is supported, which follows from the other sizes")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    return tuple(value or ()) if isinstance(value, list | None) else (value,)

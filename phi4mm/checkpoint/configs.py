"""The ``config.json`` of each layout, as a ``Phi4MMConfig``. What our mathematics does not cover is refused."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from phi4mm.checkpoint.names import Layout
from phi4mm.checkpoint.settings import Settings, distinct
from phi4mm.checkpoint.source import read_json
from phi4mm.errors import CheckpointError
from phi4mm.model.config import (
    AdapterConfig,
    DecoderConfig,
    FrontEndConfig,
    Phi4MMConfig,
    SpeechConfig,
    VisionConfig,
)
from phi4mm.model.rope import rotary_scale

FORMAT_VERSION = 1
_LAYOUTS: dict[str, Layout] = {"phi4mm": "microsoft", "phi4_multimodal": "transformers", "phi3": "phi3"}
_END_OF_TURN = 200020  # "<|end|>": Microsoft's code stops there, whatever is in config.json

_DECODER_ACCEPTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
}
_VISION_ACCEPTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu_pytorch_tanh",),
    "use_hd_transform": (True,),
    "hd_transform_order": ("sub_glb",),
    "image_token_compression_cls": ("avg_pool_2d",),
    "projection_cls": ("mlp",),
    "with_learnable_separator": (True,),
}
_SPEECH_ACCEPTED: dict[str, tuple[object, ...]] = {
    "activation": ("swish", "silu"),
    "conv_activation": ("swish", "silu"),
    "conv_glu_type": ("swish", "silu"),
    "nemo_activation": ("relu",),
    "chunk_size": (-1, 0),
    "depthwise_multiplier": (1,),
    "downsample_rate": (1,),
    "input_layer": ("nemo_conv",),
    "ext_pw_kernel_size": (1,),
    "batch_norm": (False,),
    "bias_in_glu": (True,),
    "causal": (True,),
    "cnn_layer_norm": (True,),
    "projection_cls": ("mlp",),
    "use_qformer": (False,),
    "use_conv_downsample": (False,),
}


def read_config(folder: Path) -> tuple[Layout, Phi4MMConfig]:
    """The layout and the sizes of a checkpoint folder; adapters in PEFT folders are left to the caller.

    Raises:
        CheckpointError: ``config.json`` is absent or broken, is of another kind of model, lacks a key, or asks for
            something that this package does not compute.
    """
    path = folder / "config.json"
    values = read_json(path)
    settings = Settings(values, str(path))
    if "format" in settings:
        settings.expect("format", "phi4mm")
        settings.require("format_version")
        settings.expect("format_version", FORMAT_VERSION)
        return "phi4mm", _own(values, str(path))
    kind = settings.text("model_type") if "model_type" in settings else "absent"
    if kind not in _LAYOUTS:
        raise CheckpointError(
            f'{path}: model_type is {kind}; supported are "phi4mm" (Microsoft\'s files), "phi4_multimodal" '
            '(transformers), "phi3" (text only) and this package\'s own format'
        )
    layout = _LAYOUTS[kind]
    generation = folder / "generation_config.json"
    stops = Settings(read_json(generation), str(generation)).ids("eos_token_id") if generation.is_file() else ()
    try:
        decoder = _decoder(settings, stops, layout)
        if layout == "phi3":
            return layout, Phi4MMConfig(decoder=decoder, vision=None, speech=None, adapters=())
        vision, speech = (_microsoft if layout == "microsoft" else _transformers)(settings, _max_crops(folder))
    except CheckpointError:
        raise
    except ValueError as error:  # from the configuration classes, which know their sizes but not the file
        raise CheckpointError(f"{path}: {error}; use the configuration that belongs to the weights") from error
    adapters = _microsoft_adapters(settings) if layout == "microsoft" else ()
    return layout, Phi4MMConfig(decoder=decoder, vision=vision, speech=speech, adapters=adapters)


def own_config(config: Phi4MMConfig) -> dict[str, Any]:
    """The ``config.json`` of our own layout: the decoder is its "backbone", the audio front end a part of "speech"."""
    values = config.to_dict()
    front_end = values.pop("front_end")
    if values["speech"] is not None:
        values["speech"] |= front_end
    return {"format": "phi4mm", "format_version": FORMAT_VERSION, "backbone": values.pop("decoder"), **values}


_OWN_PARTS: dict[str, tuple[type, ...]] = {
    "backbone": (DecoderConfig,),
    "vision": (VisionConfig,),
    "speech": (SpeechConfig, FrontEndConfig),
}
_OPTIONAL = {"adapter.dropout", "speech.detect_narrow_band", "speech.peak_level"}  # added later: older files lack them


def _own(values: dict[str, Any], name: str) -> Phi4MMConfig:
    problems = [f"{key} is missing" for key in (*_OWN_PARTS, "adapters") if key not in values]
    for key, kinds in _OWN_PARTS.items():
        if values.get(key) is not None:
            problems += _field_problems(key, values[key], key, *kinds)
    for index, adapter in enumerate(values.get("adapters") or ()):
        problems += _field_problems(f"adapters[{index}]", adapter, "adapter", AdapterConfig)
    if problems:
        raise CheckpointError(f"{name}: {'; '.join(problems)}; save the checkpoint again with this version of phi4mm")
    speech = dict(values["speech"] or {})
    front_end = {field.name: speech.pop(field.name) for field in fields(FrontEndConfig) if field.name in speech}
    parts = {"decoder": values["backbone"], "vision": values["vision"], "speech": speech, "front_end": front_end}
    try:
        return Phi4MMConfig.from_dict({**parts, "adapters": values["adapters"]})
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{name}: {error}; save the checkpoint again") from error


def _field_problems(place: str, values: object, part: str, *kinds: type) -> list[str]:
    """What is wrong with the keys of an object at ``place``, whose fields are those of ``kinds``."""
    if not isinstance(values, dict):
        return [f"{place} is not an object"]
    names = {field.name for kind in kinds if is_dataclass(kind) for field in fields(kind)}
    missing = sorted(name for name in names - values.keys() if f"{part}.{name}" not in _OPTIONAL)
    unknown = sorted(values.keys() - names)
    return [f"{place}.{name} is missing" for name in missing] + [f"{place}.{name} is unknown" for name in unknown]


def _decoder(settings: Settings, stops: tuple[int, ...], layout: Layout) -> DecoderConfig:
    """The decoder; the three foreign layouts share its keys, and the defaults of transformers' classes."""
    settings.require(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    )
    settings.expect_each(_DECODER_ACCEPTED)
    hidden_size, num_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    settings.expect("head_dim", hidden_size // num_heads)
    max_positions = settings.integer("max_position_embeddings")

    rope = settings.section("rope_parameters" if "rope_parameters" in settings else "rope_scaling")
    rope_type = next((rope.text(key) for key in ("rope_type", "type") if key in rope), "default")
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    if rope_type in ("longrope", "su", "yarn"):  # older names; Phi's configurations meant LongRoPE by all of them
        rope.require("short_factor", "long_factor")
        short_factor, long_factor = rope.numbers("short_factor"), rope.numbers("long_factor")
    elif rope_type != "default":
        raise rope.error("rope_type" if "rope_type" in rope else "type", '"longrope" or "default"')
    rope_theta = settings.number("rope_theta", 10000.0)
    partial_rotary_factor = settings.number("partial_rotary_factor", 1.0)
    original = rope.integer("original_max_position_embeddings", 4096)

    end = settings.ids("eos_token_id")
    stop_token_ids = distinct((*end, *stops, *((_END_OF_TURN,) if layout == "microsoft" else ())))
    pad_token_id = settings.integer("pad_token_id", (*stop_token_ids, 0)[0], least=0)
    config = DecoderConfig(
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=settings.integer("intermediate_size"),
        num_layers=settings.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", num_heads),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        max_positions=max_positions,
        original_max_positions=settings.integer("original_max_position_embeddings", original),
        rope_theta=rope.number("rope_theta", rope_theta),
        partial_rotary_factor=rope.number("partial_rotary_factor", partial_rotary_factor),
        short_factor=short_factor,
        long_factor=long_factor,
        sliding_window=settings.integer("sliding_window") if "sliding_window" in settings else None,
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        pad_token_id=pad_token_id,
        stop_token_ids=stop_token_ids or (pad_token_id,),
    )
    if long_factor:
        _expect_number(rope, "factor", config.max_positions / config.original_max_positions)
        _expect_number(rope, "attention_factor", rotary_scale(config))
    return config


def _expect_number(settings: Settings, key: str, value: float) -> None:
    if key in settings and not math.isclose(settings.number(key), value, rel_tol=1e-6):
        raise settings.error(key, f"{value:g}, which follows from max_position_embeddings")


def _transformers(settings: Settings, max_crops: int) -> tuple[VisionConfig, SpeechConfig]:
    """``vision_config`` and ``audio_config``, which may lack what equals transformers' defaults: ours, but for one."""
    vision, speech = settings.section("vision_config"), settings.section("audio_config")
    default = SpeechConfig()
    names = {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_heads": "num_attention_heads",
        "subsampling_channels": "nemo_conv_channels",
    }
    sizes = {ours: speech.integer(theirs, getattr(default, ours)) for ours, theirs in names.items()}
    return _vision(vision, vision, max_crops), _speech(
        speech,
        **sizes,
        audio_token_id=speech.integer("audio_token_id", default.audio_token_id),
        bias_max_distance=speech.integer("bias_max_distance", 1000),
        bias_symmetric=speech.flag("bias_symmetric", False),
    )


def _microsoft(settings: Settings, max_crops: int) -> tuple[VisionConfig, SpeechConfig]:
    """``embd_layer`` and ``audio_processor``. The vision tower's shape is so400m-448 unless ``vision_config`` gives it.

    Token ids are not in Microsoft's files either; ``vision_config.image_token_id`` and
    ``audio_processor.config.audio_token_id`` may give other ones than the usual.
    """
    settings.require("embd_layer", "audio_processor", "vision_lora", "speech_lora")
    processor = settings.section("audio_processor")
    processor.expect("name", "cascades")
    processor.require("config")
    speech = processor.section("config")
    speech.require("attention_dim", "attention_heads", "linear_units", "num_blocks", "nemo_conv_settings", "input_size")
    convolutions = speech.section("nemo_conv_settings")
    convolutions.require("conv_channels")
    convolutions.expect("subsampling", "dw_striding")
    convolutions.expect("is_causal", False)
    bias = speech.section("relative_attention_bias_args")
    bias.require("t5_bias_max_distance")
    bias.expect("type", "t5")
    layer = settings.section("embd_layer")
    layer.expect("embedding_cls", "image_audio")
    layer.section("audio_embd_layer").expect_each(_SPEECH_ACCEPTED)
    return _vision(settings.section("vision_config"), layer.section("image_embd_layer"), max_crops), _speech(
        speech,
        hidden_size=speech.integer("attention_dim"),
        num_heads=speech.integer("attention_heads"),
        intermediate_size=speech.integer("linear_units"),
        subsampling_channels=convolutions.integer("conv_channels"),
        audio_token_id=speech.integer("audio_token_id", SpeechConfig().audio_token_id),
        bias_max_distance=bias.integer("t5_bias_max_distance"),
        bias_symmetric=bias.flag("t5_bias_symmetric", False),
    )


def _vision(tower: Settings, crops: Settings, max_crops: int) -> VisionConfig:
    tower.expect_each(_VISION_ACCEPTED)
    crops.expect_each(_VISION_ACCEPTED)
    default = VisionConfig()
    num_layers = tower.integer("num_hidden_layers", default.num_layers)
    image_size = tower.integer("image_size", default.image_size)
    crops.expect("crop_size", image_size)
    config = VisionConfig(
        image_token_id=tower.integer("image_token_id", default.image_token_id),
        hidden_size=tower.integer("hidden_size", default.hidden_size),
        intermediate_size=tower.integer("intermediate_size", default.intermediate_size),
        num_layers=num_layers,
        num_heads=tower.integer("num_attention_heads", default.num_heads),
        image_size=image_size,
        patch_size=tower.integer("patch_size", default.patch_size),
        num_channels=tower.integer("num_channels", default.num_channels),
        norm_eps=tower.number("layer_norm_eps", default.norm_eps),
        feature_layer=tower.integer("feature_layer", default.feature_layer, least=-num_layers - 1),
        max_crops=max_crops,
    )
    if config.feature_layer > num_layers:
        raise tower.error("feature_layer", f"at most num_hidden_layers ({num_layers})")
    if config.hidden_size % config.num_heads:
        raise tower.error("num_attention_heads", f"a divisor of hidden_size {config.hidden_size}")
    return config


def _speech(settings: Settings, **sizes: Any) -> SpeechConfig:
    """What both foreign layouts name alike, and ``sizes``, which they do not."""
    settings.expect_each(_SPEECH_ACCEPTED)
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise CheckpointError(
            f"{settings.name}: {sizes['num_heads']} attention heads do not divide the width {sizes['hidden_size']}; "
            "use the configuration that belongs to the weights"
        )
    for key in ("ext_pw_out_channel", "depthwise_separable_out_channel", "depthwise_seperable_out_channel"):
        settings.expect(key, sizes["hidden_size"])
    default = SpeechConfig()
    return SpeechConfig(
        num_mels=settings.integer("input_size", default.num_mels),
        num_blocks=settings.integer("num_blocks", default.num_blocks),
        time_reduction=settings.integer("time_reduction", default.time_reduction),
        conv_kernel_size=settings.integer("kernel_size", default.conv_kernel_size),
        **sizes,
    )


def _microsoft_adapters(settings: Settings) -> tuple[AdapterConfig, ...]:
    adapters = []
    for name in ("vision", "speech"):
        lora = settings.section(f"{name}_lora")
        lora.require("r", "lora_alpha")
        dropout = lora.number("dp", 0.0, least=0.0)
        adapters.append(AdapterConfig(name, lora.integer("r"), lora.number("lora_alpha"), dropout))
    return tuple(adapters)


def _max_crops(folder: Path) -> int:
    """``dynamic_hd`` of the image processor's settings, which lie beside config.json."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return VisionConfig().max_crops
    return Settings(read_json(path), str(path)).integer("dynamic_hd", VisionConfig().max_crops)

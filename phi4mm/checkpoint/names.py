"""What each tensor of the model is called, and how it is shaped, in the layouts of transformers and of Microsoft.

Our own layout uses the names and shapes of the model's ``state_dict``, except that the decoder is called "backbone" and
that adapters lie in PEFT folders.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from phi4mm.model.config import Phi4MMConfig
from phi4mm.model.lora import adapter_name

Layout = Literal["phi4mm", "microsoft", "transformers", "phi3"]

_IMAGE = "model.embed_tokens_extend.image_embed"
_AUDIO = "model.embed_tokens_extend.audio_embed"
_PROCESSOR = f"{_IMAGE}.img_processor"
_ENCODER = f"{_AUDIO}.encoder"

# Ours -> transformers. "{}" stands for a layer; a name without its ".weight" or ".bias" stands for both.
_TRANSFORMERS = {
    "decoder.embed_tokens": "model.embed_tokens",
    "decoder.layers.{}.input_norm": "model.layers.{}.input_layernorm",
    "decoder.layers.{}.attention.qkv_proj": "model.layers.{}.self_attn.qkv_proj",
    "decoder.layers.{}.attention.o_proj": "model.layers.{}.self_attn.o_proj",
    "decoder.layers.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "decoder.layers.{}.mlp.gate_up_proj": "model.layers.{}.mlp.gate_up_proj",
    "decoder.layers.{}.mlp.down_proj": "model.layers.{}.mlp.down_proj",
    "decoder.norm": "model.norm",
    "decoder.head": "lm_head",
    "vision.row_separator": f"{_IMAGE}.sub_img_feature_extensor",
    "vision.view_separator": f"{_IMAGE}.global_img_feature_extensor",
    "vision.projector.up_proj": f"{_IMAGE}.img_projection_up",
    "vision.projector.down_proj": f"{_IMAGE}.img_projection_down",
    "vision.tower.embedding.patch": f"{_PROCESSOR}.embeddings.patch_embedding",
    "vision.tower.embedding.position": f"{_PROCESSOR}.embeddings.position_embedding.weight",
    "vision.tower.layers.{}.norm1": f"{_PROCESSOR}.encoder.layers.{{}}.layer_norm1",
    "vision.tower.layers.{}.attention.q_proj": f"{_PROCESSOR}.encoder.layers.{{}}.self_attn.q_proj",
    "vision.tower.layers.{}.attention.k_proj": f"{_PROCESSOR}.encoder.layers.{{}}.self_attn.k_proj",
    "vision.tower.layers.{}.attention.v_proj": f"{_PROCESSOR}.encoder.layers.{{}}.self_attn.v_proj",
    "vision.tower.layers.{}.attention.out_proj": f"{_PROCESSOR}.encoder.layers.{{}}.self_attn.out_proj",
    "vision.tower.layers.{}.norm2": f"{_PROCESSOR}.encoder.layers.{{}}.layer_norm2",
    "vision.tower.layers.{}.fc1": f"{_PROCESSOR}.encoder.layers.{{}}.mlp.fc1",
    "vision.tower.layers.{}.fc2": f"{_PROCESSOR}.encoder.layers.{{}}.mlp.fc2",
    "speech.tower.mean": f"{_ENCODER}.encoder_embedding.global_mean",
    "speech.tower.inverse_std": f"{_ENCODER}.encoder_embedding.global_invstd",
    "speech.tower.subsampling.stages.{}": f"{_ENCODER}.embed.conv.{{}}",  # the number is worked out below
    "speech.tower.subsampling.out": f"{_ENCODER}.embed.out",
    "speech.tower.relative_bias": f"{_ENCODER}.relative_attention_bias_layer.bias_values",
    "speech.tower.blocks.{}.feed_forward_in.norm": f"{_ENCODER}.encoders.{{}}.feed_forward_in.layer_norm",
    "speech.tower.blocks.{}.feed_forward_in.gate_up_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_in.gate_up_proj",
    "speech.tower.blocks.{}.feed_forward_in.down_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_in.down_proj",
    "speech.tower.blocks.{}.attention.norm": f"{_ENCODER}.encoders.{{}}.layer_norm_att",
    "speech.tower.blocks.{}.attention.q_proj": f"{_ENCODER}.encoders.{{}}.self_attn.q_proj",
    "speech.tower.blocks.{}.attention.k_proj": f"{_ENCODER}.encoders.{{}}.self_attn.k_proj",
    "speech.tower.blocks.{}.attention.v_proj": f"{_ENCODER}.encoders.{{}}.self_attn.v_proj",
    "speech.tower.blocks.{}.attention.o_proj": f"{_ENCODER}.encoders.{{}}.self_attn.o_proj",
    "speech.tower.blocks.{}.convolution.norm": f"{_ENCODER}.encoders.{{}}.conv.layer_norm",
    "speech.tower.blocks.{}.convolution.pointwise_in": f"{_ENCODER}.encoders.{{}}.conv.glu.ext_pw_conv_1d",
    "speech.tower.blocks.{}.convolution.value_bias": f"{_ENCODER}.encoders.{{}}.conv.glu.b1",
    "speech.tower.blocks.{}.convolution.gate_bias": f"{_ENCODER}.encoders.{{}}.conv.glu.b2",
    "speech.tower.blocks.{}.convolution.depthwise": f"{_ENCODER}.encoders.{{}}.conv.dw_sep_conv_1d.dw_conv",
    "speech.tower.blocks.{}.convolution.pointwise_mid": f"{_ENCODER}.encoders.{{}}.conv.dw_sep_conv_1d.pw_conv",
    "speech.tower.blocks.{}.convolution.pointwise_out": f"{_ENCODER}.encoders.{{}}.conv.ext_pw_conv_1d",
    "speech.tower.blocks.{}.feed_forward_out.norm": f"{_ENCODER}.encoders.{{}}.feed_forward_out.layer_norm",
    "speech.tower.blocks.{}.feed_forward_out.gate_up_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_out.gate_up_proj",
    "speech.tower.blocks.{}.feed_forward_out.down_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_out.down_proj",
    "speech.tower.blocks.{}.norm": f"{_ENCODER}.encoders.{{}}.layer_norm",
    "speech.projectors.speech.up_proj": f"{_AUDIO}.up_proj_for_speech",
    "speech.projectors.speech.down_proj": f"{_AUDIO}.down_proj_for_speech",
    "speech.projectors.vision.up_proj": f"{_AUDIO}.up_proj_for_vision_speech",
    "speech.projectors.vision.down_proj": f"{_AUDIO}.down_proj_for_vision_speech",
}

# Ours -> Microsoft, where that differs from transformers.
_MICROSOFT = _TRANSFORMERS | {
    "decoder.layers.{}.attention.qkv_proj": "model.layers.{}.self_attn.qkv_proj.base_layer",
    "decoder.layers.{}.attention.o_proj": "model.layers.{}.self_attn.o_proj.base_layer",
    "decoder.layers.{}.mlp.gate_up_proj": "model.layers.{}.mlp.gate_up_proj.base_layer",
    "decoder.layers.{}.mlp.down_proj": "model.layers.{}.mlp.down_proj.base_layer",
    "vision.row_separator": f"{_IMAGE}.sub_GN",
    "vision.view_separator": f"{_IMAGE}.glb_GN",
    "vision.projector.up_proj": f"{_IMAGE}.img_projection.0",
    "vision.projector.down_proj": f"{_IMAGE}.img_projection.2",
    "speech.tower.blocks.{}.feed_forward_in.gate_up_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_in.net.0.linear",
    "speech.tower.blocks.{}.feed_forward_in.down_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_in.net.2",
    "speech.tower.blocks.{}.attention.q_proj": f"{_ENCODER}.encoders.{{}}.self_attn.linear_q",
    "speech.tower.blocks.{}.attention.k_proj": f"{_ENCODER}.encoders.{{}}.self_attn.linear_k",
    "speech.tower.blocks.{}.attention.v_proj": f"{_ENCODER}.encoders.{{}}.self_attn.linear_v",
    "speech.tower.blocks.{}.attention.o_proj": f"{_ENCODER}.encoders.{{}}.self_attn.linear_out",
    "speech.tower.blocks.{}.feed_forward_out.gate_up_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_out.net.0.linear",
    "speech.tower.blocks.{}.feed_forward_out.down_proj": f"{_ENCODER}.encoders.{{}}.feed_forward_out.net.2",
    "speech.projectors.speech.up_proj": f"{_AUDIO}.audio_projection.speech.0",
    "speech.projectors.speech.down_proj": f"{_AUDIO}.audio_projection.speech.2",
    "speech.projectors.vision.up_proj": f"{_AUDIO}.audio_projection.vision.0",
    "speech.projectors.vision.down_proj": f"{_AUDIO}.audio_projection.vision.2",
}

# Dimensions of size one that both of them put before and after our shape.
_ONES = {
    "vision.row_separator": (3, 0),
    "vision.view_separator": (2, 0),
    "speech.tower.blocks.{}.convolution.value_bias": (1, 1),
    "speech.tower.blocks.{}.convolution.gate_bias": (1, 1),
    "speech.tower.blocks.{}.convolution.pointwise_in.weight": (0, 1),
    "speech.tower.blocks.{}.convolution.pointwise_mid.weight": (0, 1),
    "speech.tower.blocks.{}.convolution.pointwise_out.weight": (0, 1),
}

_LORA = re.compile(r"(.+)\.lora\.([^.]+)\.([ab])")

_STAGE = re.compile(r"(speech\.tower\.subsampling\.stages\.)(\d+)\.(\d+)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_ROTARY = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def stored_name(name: str, layout: Layout) -> str:
    """What the tensor ``name`` of our ``state_dict`` is called in ``layout``."""
    if layout == "phi4mm":
        return re.sub(r"^decoder\.", "backbone.", name)  # format 1 calls it so
    table = _MICROSOFT if layout == "microsoft" else _TRANSFORMERS
    name = _STAGE.sub(_convolution_number, name)
    numbers = _NUMBER.findall(name)
    template = _NUMBER.sub("{}", name)
    suffix = ""
    if template not in table:
        template, _, last = template.rpartition(".")
        suffix = f".{last}"
    return table[template].format(*numbers) + suffix


def stored_shape(name: str, shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape in ``layout`` of our tensor ``name``, which has ``shape`` in the model."""
    before, after = (0, 0) if layout == "phi4mm" else _ONES.get(_NUMBER.sub("{}", name), (0, 0))
    return (1,) * before + shape + (1,) * after


def _convolution_number(match: re.Match[str]) -> str:
    """They number convolutions and activations through: conv, relu, then depthwise, pointwise, relu again and again."""
    stage, part = int(match[2]), int(match[3])
    return f"{match[1]}{3 * stage - 1 + part if stage else 0}"


def unused_vision_tensors(config: Phi4MMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the vision tensors that both layouts hold and no result depends on.

    These are the layers after ``feature_layer``, the norm after the last layer and the pooling head.
    """
    vision = config.vision
    if vision is None:
        return {}
    width, inner = vision.hidden_size, vision.intermediate_size
    norm: dict[str, tuple[int, ...]] = {"weight": (width,), "bias": (width,)}
    mlp: dict[str, tuple[int, ...]] = {
        "fc1.weight": (inner, width),
        "fc1.bias": (inner,),
        "fc2.weight": (width, inner),
        "fc2.bias": (width,),
    }
    attention: dict[str, tuple[int, ...]] = {}
    for proj in ("q_proj", "k_proj", "v_proj", "out_proj"):
        attention |= {f"{proj}.weight": (width, width), f"{proj}.bias": (width,)}
    layer = {"layer_norm1": norm, "self_attn": attention, "layer_norm2": norm, "mlp": mlp}
    pooling: dict[str, tuple[int, ...]] = {
        "in_proj_weight": (3 * width, width),
        "in_proj_bias": (3 * width,),
        "out_proj.weight": (width, width),
        "out_proj.bias": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{_PROCESSOR}.head.probe": (1, 1, width)}
    groups = {"post_layernorm": norm, "head.attention": pooling, "head.layernorm": norm, "head.mlp": mlp}
    for number in range(vision.num_used_layers, vision.num_layers):
        groups |= {f"encoder.layers.{number}.{part}": tensors for part, tensors in layer.items()}
    for group, tensors in groups.items():
        shapes |= {f"{_PROCESSOR}.{group}.{name}": shape for name, shape in tensors.items()}
    return shapes


def is_rotary_table(name: str) -> bool:
    """Whether a foreign layout's tensor ``name`` holds rope frequencies, which follow from the configuration."""
    return _ROTARY.fullmatch(name) is not None


class LoRAName(NamedTuple):
    """What the name of an adapter's tensor in our ``state_dict`` is made of."""

    linear: str
    adapter: str
    matrix: str  # "a" or "b"


def lora_name(name: str) -> LoRAName | None:
    """The parts of ``....qkv_proj.lora.speech.a``; ``None`` for a tensor that belongs to no adapter."""
    match = _LORA.fullmatch(name)
    return LoRAName(match[1], adapter_name(match[2]), match[3]) if match else None


def is_lora(name: str, adapter: str | None = None) -> bool:
    """Whether our tensor ``name`` belongs to an adapter, or to the one given."""
    parts = lora_name(name)
    return parts is not None and adapter in (None, parts.adapter)


def peft_name(parts: LoRAName) -> str:
    """What an adapter's tensor is called in the adapter's PEFT folder."""
    return f"base_model.model.{stored_name(parts.linear, 'transformers')}.lora_{parts.matrix.upper()}.weight"


def microsoft_lora_name(parts: LoRAName) -> str:
    """What an adapter's tensor is called in Microsoft's main file."""
    linear = stored_name(parts.linear, "transformers")
    return f"{linear}.lora_{parts.matrix.upper()}.{parts.adapter}.weight"

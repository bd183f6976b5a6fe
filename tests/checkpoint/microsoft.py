"""Write a random model as Microsoft does: its names, adapters in the main file, several shards, its config.json.

The names are derived from transformers' by the inverse of its conversion script, not by the table under test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from phi4mm.model.config import Phi4MMConfig
from tests.reference.transformers_port import Pair

_RENAMED = (
    (r"(audio_embed\.encoder\.encoders\.\d+\.feed_forward_(?:in|out))\.gate_up_proj", r"\1.net.0.linear"),
    (r"(audio_embed\.encoder\.encoders\.\d+\.feed_forward_(?:in|out))\.down_proj", r"\1.net.2"),
    (r"(audio_embed\.encoder\.encoders\.\d+\.self_attn)\.([qkv])_proj", r"\1.linear_\2"),
    (r"(audio_embed\.encoder\.encoders\.\d+\.self_attn)\.o_proj", r"\1.linear_out"),
    (r"audio_embed\.up_proj_for_speech", "audio_embed.audio_projection.speech.0"),
    (r"audio_embed\.down_proj_for_speech", "audio_embed.audio_projection.speech.2"),
    (r"audio_embed\.up_proj_for_vision_speech", "audio_embed.audio_projection.vision.0"),
    (r"audio_embed\.down_proj_for_vision_speech", "audio_embed.audio_projection.vision.2"),
    (r"image_embed\.img_projection_up", "image_embed.img_projection.0"),
    (r"image_embed\.img_projection_down", "image_embed.img_projection.2"),
    (r"image_embed\.global_img_feature_extensor", "image_embed.glb_GN"),
    (r"image_embed\.sub_img_feature_extensor", "image_embed.sub_GN"),
)


def microsoft_config(config: Phi4MMConfig) -> dict[str, Any]:
    """The keys of Microsoft's config.json, with ``vision_config`` and token ids added for the small sizes."""
    decoder, vision, speech = config.decoder, config.vision, config.speech
    assert vision is not None
    assert speech is not None
    lora = {adapter.name: adapter for adapter in config.adapters}
    return {
        "model_type": "phi4mm",
        "architectures": ["Phi4MMForCausalLM"],
        "attention_bias": False,
        "audio_processor": {
            "name": "cascades",
            "config": {
                "activation": "swish",
                "attention_dim": speech.hidden_size,
                "attention_heads": speech.num_heads,
                "audio_token_id": speech.audio_token_id,
                "batch_norm": False,
                "bias_in_glu": True,
                "causal": True,
                "chunk_size": -1,
                "conv_activation": "swish",
                "conv_glu_type": "swish",
                "depthwise_multiplier": 1,
                "depthwise_seperable_out_channel": speech.hidden_size,
                "ext_pw_kernel_size": 1,
                "ext_pw_out_channel": speech.hidden_size,
                "input_layer": "nemo_conv",
                "input_size": speech.num_mels,
                "kernel_size": speech.conv_kernel_size,
                "left_chunk": 18,
                "linear_units": speech.intermediate_size,
                "nemo_conv_settings": {"conv_channels": speech.subsampling_channels},
                "num_blocks": speech.num_blocks,
                "relative_attention_bias_args": {"t5_bias_max_distance": speech.bias_max_distance, "type": "t5"},
                "time_reduction": speech.time_reduction,
            },
        },
        "bos_token_id": decoder.pad_token_id,
        "embd_layer": {
            "audio_embd_layer": {"downsample_rate": 1, "projection_cls": "mlp", "use_qformer": False},
            "embedding_cls": "image_audio",
            "image_embd_layer": {
                "crop_size": vision.image_size,
                "hd_transform_order": "sub_glb",
                "image_token_compression_cls": "avg_pool_2d",
                "projection_cls": "mlp",
                "use_hd_transform": True,
                "with_learnable_separator": True,
            },
        },
        "eos_token_id": decoder.pad_token_id,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_positions,
        "num_attention_heads": decoder.num_heads,
        "num_hidden_layers": decoder.num_layers,
        "num_key_value_heads": decoder.num_kv_heads,
        "original_max_position_embeddings": decoder.original_max_positions,
        "pad_token_id": decoder.pad_token_id,
        "partial_rotary_factor": decoder.partial_rotary_factor,
        "rms_norm_eps": decoder.norm_eps,
        "rope_scaling": {
            "long_factor": list(decoder.long_factor),
            "short_factor": list(decoder.short_factor),
            "type": "longrope",
        },
        "rope_theta": decoder.rope_theta,
        "sliding_window": decoder.sliding_window,
        "speech_lora": {"dp": lora["speech"].dropout, "lora_alpha": lora["speech"].alpha, "r": lora["speech"].rank},
        "tie_word_embeddings": decoder.tie_embeddings,
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "image_token_id": vision.image_token_id,
            "intermediate_size": vision.intermediate_size,
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
        },
        "vision_lora": {"dp": 0.0, "lora_alpha": lora["vision"].alpha, "r": lora["vision"].rank},
        "vocab_size": decoder.vocab_size,
    }


def microsoft_tensors(pair: Pair) -> dict[str, Tensor]:
    """The main file. peft's own names inside a model are Microsoft's: base_layer, lora_A.vision, ..."""
    tensors = {}
    for name, tensor in pair.port.base_model.model.state_dict().items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if name != "lm_head.weight":
            tensors[name] = tensor.contiguous()
    return tensors


def save_as_microsoft(pair: Pair, folder: Path, num_shards: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = microsoft_tensors(pair)
    names = list(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = names[shard::num_shards]
        save_file({name: tensors[name] for name in part}, folder / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(microsoft_config(pair.ours.config)))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": list(pair.ours.config.decoder.stop_token_ids)})
    )
    (folder / "tokenizer.json").write_text("{}")

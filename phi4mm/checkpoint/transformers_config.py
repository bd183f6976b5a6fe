"""The configuration files that transformers' ``Phi4MultimodalForCausalLM`` and its image processor read."""

from __future__ import annotations

from typing import Any

from phi4mm.errors import CheckpointError
from phi4mm.model.config import Phi4MMConfig, SpeechConfig, VisionConfig


def transformers_config(config: Phi4MMConfig, dtype: str) -> dict[str, Any]:
    """The ``config.json`` that ``Phi4MultimodalForCausalLM`` reads.

    Raises:
        CheckpointError: it cannot describe this model.
    """
    decoder, vision, speech = config.decoder, config.vision, config.speech
    if vision is None or speech is None:
        raise CheckpointError(
            "the transformers layout needs a vision and a speech tower, and this model lacks one; save it as layout="
            '"phi4mm"'
        )
    if speech.window_tokens != SpeechConfig().window_tokens:
        raise CheckpointError(
            f"the transformers layout knows only windows of {SpeechConfig().window_tokens} speech tokens, not "
            f'{speech.window_tokens}; save the model as layout="phi4mm"'
        )
    rope: dict[str, Any] = {"rope_type": "default"}
    if decoder.long_factor:
        rope = {
            "rope_type": "longrope",
            "short_factor": list(decoder.short_factor or (1.0,) * len(decoder.long_factor)),
            "long_factor": list(decoder.long_factor),
            "original_max_position_embeddings": decoder.original_max_positions,
        }
    rope |= {"rope_theta": decoder.rope_theta, "partial_rotary_factor": decoder.partial_rotary_factor}
    return {
        "architectures": ["Phi4MultimodalForCausalLM"],
        "model_type": "phi4_multimodal",
        "dtype": dtype,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "max_position_embeddings": decoder.max_positions,
        "original_max_position_embeddings": decoder.original_max_positions,
        "rope_parameters": rope,
        "sliding_window": decoder.sliding_window,
        "tie_word_embeddings": decoder.tie_embeddings,
        "pad_token_id": decoder.pad_token_id,
        "bos_token_id": decoder.pad_token_id,
        "eos_token_id": list(decoder.stop_token_ids),
        "vision_config": {
            "model_type": "phi4_multimodal_vision",
            "image_token_id": vision.image_token_id,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": vision.num_channels,
            "image_size": vision.image_size,
            "crop_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": vision.norm_eps,
            "feature_layer": vision.feature_layer,
        },
        "audio_config": {
            "model_type": "phi4_multimodal_audio",
            "audio_token_id": speech.audio_token_id,
            "input_size": speech.num_mels,
            "hidden_size": speech.hidden_size,
            "intermediate_size": speech.intermediate_size,
            "num_blocks": speech.num_blocks,
            "num_attention_heads": speech.num_heads,
            "nemo_conv_channels": speech.subsampling_channels,
            "ext_pw_out_channel": speech.hidden_size,
            "depthwise_separable_out_channel": speech.hidden_size,
            "time_reduction": speech.time_reduction,
            "kernel_size": speech.conv_kernel_size,
            "bias_max_distance": speech.bias_max_distance,
            "bias_symmetric": speech.bias_symmetric,
        },
    }


def preprocessor_config(vision: VisionConfig) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of transformers' image processor, which holds the number of crops."""
    return {
        "image_processor_type": "Phi4MultimodalImageProcessor",
        "dynamic_hd": vision.max_crops,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "patch_size": vision.patch_size,
    }

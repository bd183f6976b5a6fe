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


def preprocessor_config(vision: VisionConfig, speech: SpeechConfig) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of transformers' image processor and feature extractor."""
    return {
        "processor_class": "Phi4MultimodalProcessor",
        "image_processor_type": "Phi4MultimodalImageProcessor",
        "dynamic_hd": vision.max_crops,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "patch_size": vision.patch_size,
        "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
        "feature_size": speech.num_mels,
        "audio_compression_rate": speech.time_reduction,
    }


_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|tool_response|>' if message['role'] == 'tool' else '<|' + message['role'] + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- {'image': image_token, 'audio': audio_token}[part['type']] if part['type'] != 'text' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- if message['tools'] -%}
{{- '<|tool|>' + message['tools'] + '<|/tool|>' -}}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def tokenizer_files(config: Phi4MMConfig, tokenizer: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What ``AutoProcessor`` and ``AutoTokenizer`` read beside ``tokenizer.json``.

    Args:
        config: of a model with both towers.
        tokenizer: what ``tokenizer.json`` holds, for the names of the special tokens.

    Returns:
        ``tokenizer_config.json`` and ``chat_template.jinja``.
    """
    decoder, vision, speech = config.decoder, config.vision, config.speech
    assert vision is not None
    assert speech is not None
    names = {token["id"]: token["content"] for token in tokenizer.get("added_tokens") or ()}
    pad = names.get(decoder.pad_token_id)
    media = {"image_token": names.get(vision.image_token_id), "audio_token": names.get(speech.audio_token_id)}
    template = _CHAT_TEMPLATE
    for key, token in media.items():
        template = template.replace(key, repr(token))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Phi4MultimodalProcessor",
        "model_max_length": decoder.max_positions,
        "clean_up_tokenization_spaces": False,
        "bos_token": pad,
        "eos_token": pad,
        "pad_token": pad,
        "extra_special_tokens": media,
    }
    return values, template

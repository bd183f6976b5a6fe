"""The same random small model on both sides: ours, and transformers' port with peft's adapters.

Nothing is left at a value that would hide a mistake: norms, biases, separators, the relative bias, the feature
statistics and every LoRA B are random.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from phi4mm.checkpoint.names import lora_name, peft_name, stored_name
from phi4mm.model.batch import AudioBatch, Batch, ImageBatch
from phi4mm.model.config import AdapterConfig, DecoderConfig, Phi4MMConfig, SpeechConfig, VisionConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.types import Route

TARGET_MODULES = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"


def small_config() -> Phi4MMConfig:
    """Every size differs from every other where the model allows it. The vocabulary is 300; long rope starts at 65."""
    return Phi4MMConfig(
        decoder=DecoderConfig(
            vocab_size=300,
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            max_positions=2048,
            original_max_positions=64,
            short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
            long_factor=(1.0, 1.2, 1.5, 2.0, 3.0, 4.0),
            sliding_window=1024,
            pad_token_id=299,
            stop_token_ids=(299, 298),
        ),
        vision=VisionConfig(
            image_token_id=290,
            hidden_size=48,
            intermediate_size=80,
            num_layers=3,
            num_heads=4,
            image_size=56,
            patch_size=14,
        ),
        speech=SpeechConfig(
            audio_token_id=291,
            hidden_size=32,
            intermediate_size=24,
            num_blocks=2,
            num_heads=4,
            subsampling_channels=8,
            bias_max_distance=10,
        ),
        adapters=(AdapterConfig("vision", rank=3, alpha=6.0), AdapterConfig("speech", rank=5, alpha=7.0, dropout=0.01)),
    )


def port_config(config: Phi4MMConfig) -> Phi4MultimodalConfig:
    """Our sizes in transformers' words."""
    decoder, vision, speech = config.decoder, config.vision, config.speech
    assert vision is not None
    assert speech is not None
    rope: dict[str, object] = {"rope_type": "default"}
    if decoder.long_factor:
        rope = {
            "rope_type": "longrope",
            "short_factor": list(decoder.short_factor),
            "long_factor": list(decoder.long_factor),
        }
    rope |= {"rope_theta": decoder.rope_theta, "partial_rotary_factor": decoder.partial_rotary_factor}
    return Phi4MultimodalConfig(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        rms_norm_eps=decoder.norm_eps,
        max_position_embeddings=decoder.max_positions,
        original_max_position_embeddings=decoder.original_max_positions,
        rope_parameters=rope,
        sliding_window=decoder.sliding_window,
        tie_word_embeddings=decoder.tie_embeddings,
        pad_token_id=decoder.pad_token_id,
        bos_token_id=decoder.pad_token_id,
        eos_token_id=list(decoder.stop_token_ids),
        vision_config={
            "image_token_id": vision.image_token_id,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": vision.num_channels,
            "image_size": vision.image_size,
            "crop_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.norm_eps,
            "feature_layer": vision.feature_layer,
        },
        audio_config={
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
    )


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter, and the feature statistics, random values that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                normal(parameter, 0.1, 1.0)
            elif parameter.dim() < 2 or name.endswith(("b1", "b2")):
                normal(parameter, 0.1)
            elif "embed_tokens.weight" in name or "bias_values" in name or "extensor" in name:
                normal(parameter, 0.5)
            else:
                normal(parameter, parameter[0].numel() ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("global_mean"):
                normal(buffer, 0.3)
            elif name.endswith("global_invstd"):
                normal(buffer, 0.1, 1.0)


@dataclass(frozen=True)
class Pair:
    """Our model and transformers' with the same weights, in eval mode."""

    ours: Phi4MMModel
    port: PeftModel

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[Phi4MultimodalForCausalLM]:
        """Transformers' model with the adapter ``name`` on, or with none."""
        if name is None:
            with self.port.disable_adapter():
                yield self.port.base_model.model
        else:
            self.port.set_adapter(name)
            yield self.port.base_model.model


def random_port(config: Phi4MMConfig, seed: int = 0) -> Phi4MultimodalForCausalLM:
    """Transformers' model with random weights, without adapters.

    Its attention is "eager": with "sdpa" its vision tower takes an image without padding (no mask) for causal.
    """
    model_config = port_config(config)
    model_config._attn_implementation = "eager"
    port = Phi4MultimodalForCausalLM(model_config).eval().requires_grad_(False)
    randomize(port, seed)
    return port


def add_adapters(port: Phi4MultimodalForCausalLM, config: Phi4MMConfig, seed: int = 1) -> PeftModel:
    """Put random LoRA adapters into ``port``, which is changed in place."""
    peft_configs = {
        adapter.name: LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha),
            lora_dropout=adapter.dropout,
            target_modules=TARGET_MODULES,
            task_type="CAUSAL_LM",
        )
        for adapter in config.adapters
    }
    first, *others = config.adapters
    peft_model = get_peft_model(port, peft_configs[first.name], adapter_name=first.name)
    for adapter in others:
        peft_model.add_adapter(adapter.name, peft_configs[adapter.name])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return peft_model.eval().requires_grad_(False)


def make_pair(config: Phi4MMConfig | None = None, seed: int = 0) -> Pair:
    """Both models with the same random weights and adapters."""
    config = config or small_config()
    port = random_port(config, seed)
    state = port.state_dict()
    peft_model = add_adapters(port, config, seed + 1)
    adapter_states = {
        adapter.name: get_peft_model_state_dict(peft_model, adapter_name=adapter.name) for adapter in config.adapters
    }
    ours = Phi4MMModel(config).eval().requires_grad_(False)
    for name, tensor in ours.state_dict().items():
        parts = lora_name(name)
        if parts is None:
            tensor.copy_(state[stored_name(name, "transformers")].reshape(tensor.shape))
        else:
            tensor.copy_(adapter_states[parts.adapter][peft_name(parts)])
    return Pair(ours, peft_model)


def port_inputs(batch: Batch, config: Phi4MMConfig) -> dict[str, object]:
    """The keyword arguments of transformers' ``forward`` for a batch whose rows are equally long, as are its clips."""
    inputs: dict[str, object] = {"input_ids": batch.token_ids, "use_cache": False}
    if batch.images is not None:
        assert config.vision is not None
        crops, masks, grids = batch.images.crops, batch.images.masks, batch.images.grids
        counts = [1 + rows * columns for rows, columns in grids]
        inputs["image_pixel_values"] = nn.utils.rnn.pad_sequence(crops.split(counts), batch_first=True)
        inputs["image_attention_mask"] = nn.utils.rnn.pad_sequence(masks.split(counts), batch_first=True)
        inputs["image_sizes"] = torch.tensor(grids) * config.vision.image_size
    if batch.audios is not None:
        assert config.speech is not None
        features, num_frames = batch.audios.features, batch.audios.num_frames
        inputs["audio_input_features"] = features
        inputs["audio_embed_sizes"] = torch.tensor([config.speech.num_tokens(n) for n in num_frames.tolist()])
        inputs["audio_attention_mask"] = torch.arange(features.shape[1]) < num_frames[:, None]
    return inputs


def random_batch(config: Phi4MMConfig, adapter: str | None, *, image: bool, audio: bool, seed: int = 7) -> Batch:
    """One row of text, with a partly filled image of 1 x 2 tiles and a clip of 51 frames among it."""
    vision, speech = config.vision, config.speech
    assert vision is not None
    assert speech is not None
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 280, (20,), generator=generator).tolist()
    token_ids, images, audios = text[:5], None, None
    if image:
        side, per_side = vision.patches_per_side, vision.tokens_per_side
        masks = torch.ones(3, side, side, dtype=torch.bool)
        masks[2, :, side // 2 :] = False
        crops = torch.randn(3, vision.num_channels, vision.image_size, vision.image_size, generator=generator)
        images = ImageBatch(crops, masks, ((1, 2),))
        useful_columns = int(masks[1:, 0, ::2].sum())
        num_tokens = per_side * (per_side + 1) + 1 + per_side * (useful_columns + 1)
        token_ids = token_ids + [vision.image_token_id] * num_tokens
    if audio:
        features = torch.randn(1, 51, speech.num_mels, generator=generator)
        audios = AudioBatch(features, torch.tensor([51]), (0,))
        token_ids = token_ids + [speech.audio_token_id] * speech.num_tokens(51)
    token_ids = token_ids + text[5:]
    route = Route((adapter,) if adapter else (), audio_projector="vision" if image else "speech")
    return Batch(torch.tensor([token_ids]), torch.tensor([len(token_ids)]), (route,), images, audios)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest magnitude."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())

"""transformers' port on the device, with random weights of the same sizes and peft's adapters."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Phi4MultimodalConfig

from phi4mm.bench import cases
from phi4mm.bench.gpu_setting import Setting
from phi4mm.bench.theirs import Theirs
from phi4mm.checkpoint.transformers_config import transformers_config
from phi4mm.devices import dtype_name
from phi4mm.inputs.processor import Processor
from phi4mm.inputs.tokenizer import Tokenizer

_TARGETS = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"


def make_port(setting: Setting) -> Theirs:
    """Made where it shall be; its attention is torch's."""
    config = setting.config
    described = Phi4MultimodalConfig.from_dict(transformers_config(config, dtype_name(setting.dtype)))
    with torch.device(setting.device):
        port = AutoModelForCausalLM.from_config(described, dtype=setting.dtype, attn_implementation="sdpa")
        loras = {
            adapter.name: LoraConfig(
                r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules=_TARGETS, task_type="CAUSAL_LM"
            )
            for adapter in config.adapters
        }
        first, *others = config.adapters
        adapted = get_peft_model(port, loras[first.name], adapter_name=first.name, autocast_adapter_dtype=False)
        for adapter in others:
            adapted.add_adapter(adapter.name, loras[adapter.name], autocast_adapter_dtype=False)
    return Theirs(adapted, config, Processor(config, Tokenizer(cases.bundled_tokenizer())), setting.preset)

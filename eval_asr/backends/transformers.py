"""Phi-4-multimodal as transformers ports it, with its speech adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Phi4MultimodalForCausalLM

from eval_asr.backends import DEFAULT_PROMPT, BackendOptions, Recogniser
from eval_asr.errors import BackendError

_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformersRecogniser(Recogniser):
    """Greedy decoding of a padded batch."""

    sampling_rate = 16000

    def __init__(self, model: Any, processor: Any, options: BackendOptions) -> None:
        self.name = options.label
        self.model = model
        self.processor = processor
        prompt = options.prompt or DEFAULT_PROMPT
        self.text = f"<|user|>{processor.audio_token}{prompt}<|end|><|assistant|>"
        self.max_new_tokens = options.max_new_tokens

    @torch.inference_mode()
    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
        inputs = self.processor(
            text=[self.text] * len(clips),
            audio=clips,
            sampling_rate=self.sampling_rate,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def load(options: BackendOptions) -> Recogniser:
    if options.model is None:
        raise BackendError("backend 'transformers' needs --model: a folder or hub id in transformers' layout")
    if options.dtype not in _DTYPES:
        raise BackendError(f"dtype is {options.dtype!r}; expected one of {', '.join(_DTYPES)}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = AutoProcessor.from_pretrained(options.model)
        processor.tokenizer.padding_side = "left"
        model: Any = Phi4MultimodalForCausalLM.from_pretrained(options.model, dtype=_DTYPES[options.dtype])
        # An adapter that is not loaded leaves fluent nonsense, without a word of it.
        model.load_adapter(options.model, adapter_name="speech", adapter_kwargs={"subfolder": "speech-lora"})
        model.set_adapter("speech")
        model.to(device).eval()
    except Exception as error:  # the library raises many kinds, for names, networks, files and missing packages
        reason = " ".join(str(error).split())[:300]
        raise BackendError(
            f"{options.model}: transformers cannot load it ({type(error).__name__}: {reason}); expected "
            "Phi4MultimodalForCausalLM's layout with a processor and speech-lora/, and torchvision installed"
        ) from error
    return TransformersRecogniser(model, processor, options)

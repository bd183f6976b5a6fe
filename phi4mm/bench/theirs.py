"""Each row of the table, run by transformers' ``Phi4MultimodalForCausalLM`` with peft's adapters.

Tokens and model inputs are made by this package's processor, so that both sides compute the same; transformers' own
feature extractor and image processor are timed in rows of their own, and in the ASR job.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal.feature_extraction_phi4_multimodal import Phi4MultimodalFeatureExtractor
from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

from phi4mm.bench import cases
from phi4mm.checkpoint.configs import read_config
from phi4mm.checkpoint.peft_folder import read_adapter_config
from phi4mm.checkpoint.source import tokenizer_file
from phi4mm.inputs.processor import Processor, Row
from phi4mm.inputs.tokenizer import Tokenizer
from phi4mm.model.config import Phi4MMConfig

_ADAPTERS = {"text": None, "image": "vision", "audio": "speech", "image+audio": "vision"}


class Theirs:
    """Methods are rows of the table; each does its work once.

    Args:
        port: with both adapters, on any device.
        config: of the same model.
        processor: makes tokens and features.
        preset: how much of each job is run.
    """

    def __init__(self, port: PeftModel, config: Phi4MMConfig, processor: Processor, preset: cases.Preset) -> None:
        self.preset = preset
        self.config = config
        self.processor = processor
        self.port = port.eval().requires_grad_(False)
        causal_lm: Any = port.base_model.model  # with peft's layers in it
        self.causal_lm = causal_lm
        self.causal_lm.generation_config.pad_token_id = config.decoder.pad_token_id
        self.causal_lm.generation_config.eos_token_id = list(config.decoder.stop_token_ids)
        self.dtype = self.causal_lm.dtype
        self.extractor = Phi4MultimodalFeatureExtractor()

    @classmethod
    def load(cls, folder: Path, preset: cases.Preset, quantize: str | None) -> Theirs:
        """Of a folder in transformers' layout."""
        del quantize  # there is no weight-only quantisation to compare with
        _, config = read_config(folder)
        adapters = tuple(read_adapter_config(folder / f"{name}-lora", name) for name in ("vision", "speech"))
        config = replace(config, adapters=adapters)
        base = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
        port = PeftModel.from_pretrained(base, folder / "vision-lora", adapter_name="vision")
        port.load_adapter(folder / "speech-lora", adapter_name="speech")
        return cls(port, config, Processor(config, Tokenizer(tokenizer_file(folder))), preset)

    def feature_extraction(self) -> None:
        self.extractor(list(cases.feature_clips()), sampling_rate=cases.SAMPLING_RATE, return_tensors="pt")

    def image_preparation(self) -> None:
        Phi4MultimodalImageProcessor()(cases.picture(1344, 896), return_tensors="pt")

    @torch.inference_mode()
    def speech_tower(self) -> None:
        row = self._rows("audio")[0]
        inputs = self._inputs([row])
        place = torch.tensor([row.token_ids])
        self.causal_lm.model.embed_tokens_extend.audio_embed(
            place,
            torch.zeros(*place.shape, self.config.decoder.hidden_size, dtype=self.dtype),
            audio_input_features=inputs["audio_input_features"],
            audio_embed_sizes=inputs["audio_embed_sizes"],
            audio_attention_mask=inputs["audio_attention_mask"],
            audio_projection_mode="speech",
        )

    @torch.inference_mode()
    def vision_tower(self) -> None:
        row = self._rows("image")[0]
        inputs = self._inputs([row])
        place = torch.tensor([row.token_ids])
        self.causal_lm.model.embed_tokens_extend.image_embed(
            place,
            torch.zeros(*place.shape, self.config.decoder.hidden_size, dtype=self.dtype),
            image_pixel_values=inputs["image_pixel_values"],
            image_sizes=inputs["image_sizes"],
            image_attention_mask=inputs["image_attention_mask"],
        )

    def generate(self, kind: str, count: int, new_tokens: int, sampled: bool = False) -> None:
        inputs = self._inputs(self._rows(kind, count))
        self._generate(inputs, _ADAPTERS[kind], new_tokens, new_tokens, **(cases.SAMPLED if sampled else {}))

    def mixed_batch(self) -> None:
        """Separate batches: the port has one adapter and one audio projector at a time."""
        for kind in cases.KINDS:
            self.generate(kind, 1, self.preset.new_tokens)

    def second_question(self, kind: str, warm: bool) -> float:
        """Seconds to the first token of another question on a medium: the port computes it whole in either case."""
        del warm
        _, second = cases.two_questions(kind, self.config)
        start = time.perf_counter()
        self._generate(self._inputs([self.processor.row(second)]), _ADAPTERS[kind], 1, 1)
        return time.perf_counter() - start

    def asr_job(self, batch_size: int) -> list[str]:
        """The clips' texts, from batches sorted by length, which is what is fast here.

        A padded clip comes out changed: transformers adds a boolean mask to the relative bias of the speech tower's
        attention, so that padding is attended to. Only one clip at a time (``batch_size`` 1) is as it should be.
        """
        import soundfile

        clips = cases.job_clips(self.preset.num_clips)
        files = cases.job_files(self.preset.num_clips)
        order = sorted(range(len(clips)), key=lambda index: len(clips[index]))
        texts: dict[int, str] = {}
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            samples = [soundfile.read(files[index], dtype="float32")[0] for index in group]
            tokens = self.transcribed(samples, max(cases.job_tokens(len(one)) for one in samples))
            for index, written in zip(group, tokens.tolist(), strict=True):
                texts[index] = self._text(written[: cases.job_tokens(len(clips[index]))])
        return [texts[index] for index in range(len(clips))]

    def transcribed(self, clips: Sequence[np.ndarray], most: int, least: int = 1) -> torch.Tensor:
        """The new tokens of a batch of clips [clips, tokens], ``least`` to ``most`` of them."""
        features = self.extractor(list(clips), sampling_rate=cases.SAMPLING_RATE, return_tensors="pt")
        sizes = features["audio_embed_sizes"]
        assert self.config.speech is not None
        audio, pad = self.config.speech.audio_token_id, self.config.decoder.pad_token_id
        before, after = self._prompt_around_audio
        rows = [torch.tensor([*before, *[audio] * size, *after]) for size in sizes.tolist()]
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left"),
            "attention_mask": pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
            ),
            "audio_input_features": features["audio_input_features"].to(self.dtype),
            "audio_embed_sizes": sizes,
            "audio_attention_mask": features.get("audio_attention_mask"),
        }
        return self._generate(inputs, "speech", least, most)

    @cached_property
    def _prompt_around_audio(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids before and after those of a clip."""
        assert self.config.speech is not None
        [row] = self._rows("audio")
        audio = self.config.speech.audio_token_id
        first, count = row.token_ids.index(audio), row.token_ids.count(audio)
        return row.token_ids[:first], row.token_ids[first + count :]

    def _text(self, tokens: Sequence[int]) -> str:
        stop = {*self.config.decoder.stop_token_ids, self.config.decoder.pad_token_id}
        return self.processor.tokenizer.decode([token for token in tokens if token not in stop])

    def _rows(self, kind: str, count: int = 1) -> list[Row]:
        return [self.processor.row(request) for request in cases.requests_of(kind, self.config, count)]

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The arguments of the port's ``forward`` for rows of one kind, padded at the start."""
        longest = max(len(row.token_ids) for row in rows)
        pad = self.config.decoder.pad_token_id
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (longest - len(row.token_ids)) + list(row.token_ids) for row in rows]),
            "attention_mask": torch.tensor(
                [[0] * (longest - len(row.token_ids)) + [1] * len(row.token_ids) for row in rows]
            ),
        }
        images = [image for row in rows for image in row.images]
        clips = [clip for row in rows for clip in row.clips]
        if images:
            assert self.config.vision is not None
            inputs["image_pixel_values"] = pad_sequence([image.crops for image in images], batch_first=True)
            inputs["image_pixel_values"] = inputs["image_pixel_values"].to(self.dtype)
            inputs["image_attention_mask"] = pad_sequence([image.masks for image in images], batch_first=True)
            inputs["image_sizes"] = torch.tensor([image.grid for image in images]) * self.config.vision.image_size
        if clips:
            assert self.config.speech is not None
            frames = torch.tensor([len(clip) for clip in clips])
            inputs["audio_input_features"] = pad_sequence(clips, batch_first=True).to(self.dtype)
            inputs["audio_embed_sizes"] = torch.tensor([self.config.speech.num_tokens(len(clip)) for clip in clips])
            inputs["audio_attention_mask"] = torch.arange(int(frames.max())) < frames[:, None]
        return inputs

    @torch.inference_mode()
    def _generate(
        self, inputs: dict[str, Any], adapter: str | None, least: int, most: int, **sampling: Any
    ) -> torch.Tensor:
        """The new tokens [rows, tokens]; greedily, unless ``sampling`` says how."""
        inputs = {
            name: value.to(self.port.device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        if adapter is not None:
            self.port.set_adapter(adapter)
        with self.port.disable_adapter() if adapter is None else nullcontext():
            written = self.causal_lm.generate(
                **inputs, min_new_tokens=least, max_new_tokens=most, do_sample=bool(sampling), **sampling
            )
        new: torch.Tensor = written[:, inputs["input_ids"].shape[1] :]
        return new

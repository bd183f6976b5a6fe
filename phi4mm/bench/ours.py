"""Each row of the table, run by this package: through ``Phi4MM`` and its engine, as commands and evaluation do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.inputs.audio import Waveform, log_mel
from phi4mm.inputs.image import prepare_image
from phi4mm.model.batch import Batch
from phi4mm.model.config import VisionConfig
from phi4mm.types import Reply, Request, SamplingParams


class Ours:
    """Methods are rows of the table; each does its work once, and finds nothing of an earlier one in the caches.

    Args:
        phi: on any device.
        preset: how much of each job is run.
    """

    def __init__(self, phi: Phi4MM, preset: cases.Preset) -> None:
        self.preset = preset
        self.phi = phi
        self.model = phi.model

    @classmethod
    def load(cls, folder: Path, preset: cases.Preset, quantize: str | None) -> Ours:
        return cls(Phi4MM.from_pretrained(folder, device="cpu", quantize=quantize), preset)

    def feature_extraction(self) -> None:
        waveforms = [Waveform(samples, cases.SAMPLING_RATE) for samples in cases.feature_clips()]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(log_mel, waveforms))

    def image_preparation(self) -> None:
        prepare_image(cases.picture(1344, 896), VisionConfig())

    @torch.inference_mode()
    def speech_tower(self) -> None:
        audios = self._batch("audio").audios
        assert self.model.speech is not None
        assert audios is not None
        self.model.speech(audios.features.to(self.model.dtype), audios.num_frames, ["speech"])

    @torch.inference_mode()
    def vision_tower(self) -> None:
        images = self._batch("image").images
        assert self.model.vision is not None
        assert images is not None
        self.model.vision(images.crops.to(self.model.dtype), images.masks, images.grids)

    def generate(self, kind: str, count: int, new_tokens: int, sampled: bool = False) -> None:
        self._answer(cases.requests_of(kind, self.model.config, count), new_tokens, sampled=sampled)

    def mixed_batch(self) -> None:
        requests = [request for kind in cases.KINDS for request in cases.requests_of(kind, self.model.config)]
        self._answer(requests, self.preset.new_tokens)

    def second_question(self, kind: str, warm: bool) -> float:
        """Seconds to the first token of another question on a medium; ``warm``: after the first one was answered."""
        first, second = cases.two_questions(kind, self.model.config)
        if warm:
            self._answer([first], 1)
        start = time.perf_counter()
        self._answer([second], 1, cold=not warm)
        return time.perf_counter() - start

    def asr_job(self, port_batch_size: int) -> list[str]:
        """The clips' texts. Up to 64 rows are decoded together, however many are in the port's batch: a row is the
        same in any."""
        del port_batch_size
        clips = cases.job_clips(self.preset.num_clips)
        requests = [
            Request.make(cases.PROMPT, audios=[path], max_new_tokens=cases.job_tokens(len(samples)))
            for path, samples in zip(cases.job_files(self.preset.num_clips), clips, strict=True)
        ]
        self.phi.drop_caches()
        replies = self.phi.chat_batch(requests, batch_size=cases.ROWS)
        return [reply.text for reply in replies]

    def transcribed(self, clips: Sequence[np.ndarray], new_tokens: int) -> list[Reply]:
        """So many tokens for each clip."""
        requests = [Request(cases.PROMPT, audios=[(samples, cases.SAMPLING_RATE)]) for samples in clips]
        return self._answer(requests, new_tokens)

    def _answer(
        self, requests: Sequence[Request], new_tokens: int, *, sampled: bool = False, cold: bool = True
    ) -> list[Reply]:
        """Answer with so many tokens each, all together."""
        stops = tuple(self.model.config.decoder.stop_token_ids)
        sampling = SamplingParams(max_new_tokens=new_tokens, banned_tokens=stops)
        if sampled:
            sampling = replace(sampling, **cases.SAMPLED, seed=0)
        if cold:
            self.phi.drop_caches()
        return self.phi.chat_batch([replace(request, sampling=sampling) for request in requests], batch_size=cases.ROWS)

    def _batch(self, kind: str) -> Batch:
        return self.phi.processor(cases.requests_of(kind, self.model.config))

"""Each row of the table, run by this package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.engine.engine import Generation
from phi4mm.engine.merge import merge
from phi4mm.engine.sampler import Sampling
from phi4mm.inputs.audio import Waveform, log_mel
from phi4mm.inputs.image import prepare_image
from phi4mm.model.batch import Batch
from phi4mm.model.config import VisionConfig
from phi4mm.types import Request
from phi4mm.workers import Workers


class Ours:
    """Methods are rows of the table; each does its work once."""

    def __init__(self, folder: Path, preset: cases.Preset, quantize: str | None) -> None:
        self.preset = preset
        self.folder = folder
        self.phi = Phi4MM.from_pretrained(folder, device="cpu", quantize=quantize)
        self.model = self.phi.model

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

    def generate(self, kind: str, count: int, new_tokens: int) -> None:
        for _ in Generation(self.model, self._batch(kind, count), [Sampling(new_tokens)] * count):
            pass

    def mixed_batch(self) -> None:
        requests = [request for kind in cases.KINDS for request in cases.requests_of(kind, self.model.config)]
        samplings = [Sampling(self.preset.new_tokens)] * len(requests)
        for _ in Generation(self.model, self.phi.processor(requests), samplings):
            pass

    def asr_job(self, port_batch_size: int) -> list[str]:
        """The clips' texts. All rows take the speech adapter: the turn that is not counted merges it into a copy of the
        weights. Up to 64 rows are decoded together, however many are in the port's batch: a row is the same in any."""
        del port_batch_size
        clips = cases.job_clips(self.preset.num_clips)
        requests = [
            Request(cases.PROMPT, audios=[path], max_new_tokens=cases.job_tokens(len(samples)))
            for path, samples in zip(cases.job_files(self.preset.num_clips), clips, strict=True)
        ]
        replies = self._recogniser.chat_batch(requests, batch_size=64)
        return [reply.text for reply in replies]

    @cached_property
    def _recogniser(self) -> Phi4MM | Workers:
        """The model with the adapter merged, or a process with it for each thread."""
        if not self.preset.shared_out:
            merge(self.model, "speech")
            return self.phi
        return Workers(self.folder, processes=torch.get_num_threads(), merge="speech")

    def _batch(self, kind: str, count: int = 1) -> Batch:
        return self.phi.processor(cases.requests_of(kind, self.model.config, count))

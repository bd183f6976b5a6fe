"""Each row of the table, run by this package."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.inputs.audio import Waveform, log_mel
from phi4mm.inputs.image import prepare_image
from phi4mm.inputs.processor import Row
from phi4mm.model.batch import Batch
from phi4mm.model.config import VisionConfig
from phi4mm.pipeline import answer_all
from phi4mm.runtime.engine import Generation
from phi4mm.runtime.fold import FoldedLinear, fold
from phi4mm.runtime.pack import can_pack, pack_backbone
from phi4mm.runtime.sampling import Sampling
from phi4mm.types import Reply, Request


class Ours:
    """Methods are rows of the table; each does its work once."""

    def __init__(self, folder: Path, preset: cases.Preset, quantize: str | None) -> None:
        self.preset = preset
        self.phi = Phi4MM.from_pretrained(folder, device="cpu", quantize=quantize)
        self.model = self.phi.model
        if quantize is None and can_pack(self.model.device, self.model.dtype):
            pack_backbone(self.model)

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
        """The clips' texts. All rows take the speech adapter: the turn that is not counted folds it into a copy of the
        weights. Up to 64 rows are decoded together, however many are in the port's batch: a row is the same in any."""
        del port_batch_size
        if not any(isinstance(module, FoldedLinear) for module in self.model.modules()):
            fold(self.model, "speech")
        jobs = [partial(self._prepare, samples) for samples in cases.job_clips(self.preset.num_clips)]
        replies = answer_all(self.model, self.phi.processor, jobs, batch_size=64)
        return [reply.text for reply in replies if isinstance(reply, Reply)]

    def _prepare(self, samples: np.ndarray) -> tuple[Request, Row]:
        request = Request(
            cases.PROMPT, audios=[(samples, cases.SAMPLING_RATE)], max_new_tokens=cases.job_tokens(len(samples))
        )
        return request, self.phi.processor.row(request)

    def _batch(self, kind: str, count: int = 1) -> Batch:
        return self.phi.processor(cases.requests_of(kind, self.model.config, count))

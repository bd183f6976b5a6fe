"""Speed and memory of the GPU program, as shares of what the device can do, beside transformers' port."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from phi4mm.api import Phi4MM
from phi4mm.bench import cases
from phi4mm.bench.gpu_report import Budget, Figure, Report, need
from phi4mm.bench.gpu_setting import Setting, clips, median
from phi4mm.bench.ours import Ours
from phi4mm.engine.kv_cache import Arena, KVCache
from phi4mm.engine.runner import Chunk, ModelRunner, Token
from phi4mm.model.phi4mm import Phi4MMModel

if TYPE_CHECKING:
    from phi4mm.bench.theirs import Theirs

_REPEATS = 10


@dataclass
class Speed:
    """The sections that measure; they share the large model and the limits of the device.

    Args:
        setting: how large everything is.

    Attributes:
        bandwidth, arithmetic: of the device, in bytes and operations a second.
        ours: by the names of the figures that the port is measured for too.
        peak: bytes allocated on the device by the same work as the port's.
    """

    setting: Setting
    bandwidth: float = 0.0
    arithmetic: float = 0.0
    ours: dict[str, float] = field(default_factory=dict)
    peak: int | None = None

    @cached_property
    def model(self) -> Phi4MMModel:
        return cases.random_model(self.setting.config, self.setting.device, self.setting.dtype)

    def drop_model(self) -> None:
        self.__dict__.pop("model", None)
        self.setting.free()

    def limits(self, budget: Budget, report: Report) -> None:
        """What the device copies, and multiplies, in a second."""
        setting = self.setting
        source = torch.ones(setting.copied_bytes, dtype=torch.uint8, device=setting.device)
        target = torch.empty_like(source)
        seconds = self._seconds(partial(target.copy_, source))
        copied = 2 * setting.copied_bytes / seconds
        report.add(Figure("device", "copy, read and written", copied, "bytes/s"))
        read = setting.copied_bytes / self._seconds(source.view(torch.float32).sum)
        report.add(Figure("device", "sum, read alone", read, "bytes/s"))
        self.bandwidth = max(copied, read)
        size = setting.matrix_size
        factors = torch.randn(2, size, size, device=setting.device, dtype=setting.dtype)
        seconds = self._seconds(partial(torch.mm, factors[0], factors[1]))
        self.arithmetic = 2 * size**3 / seconds
        report.add(Figure("device", f"product of {size} x {size}", self.arithmetic, "flop/s"))
        del source, target, factors
        setting.free()

    def decode(self, budget: Budget, report: Report) -> None:
        """Decode steps without the engine, as a share of the memory's bandwidth."""
        for how in ("captured", "compiled", "plain"):
            for num_rows in self.setting.rows:
                expected = (20 if how == "compiled" else 4) if self.setting.device.type == "cuda" else 2
                need(budget, expected, f"{how} decoding of {num_rows} rows")
                self._decode(num_rows, how, report)
        self.setting.free()

    @torch.inference_mode()
    def _decode(self, num_rows: int, how: str, report: Report) -> None:
        setting = self.setting
        runner = setting.runner(how, num_rows)(self.model, setting.cache_tokens)
        arena = Arena(setting.cache_tokens)
        extents = []
        for _ in range(num_rows):
            extent = arena.allocate(setting.context + 2 + _REPEATS)
            assert extent is not None
            extents.append(extent)
        times = []
        for step in range(2 + _REPEATS):
            tokens = [Token(extent, 7, setting.context + step, (), False) for extent in extents]
            begin = time.perf_counter()
            runner.decode(sorted(tokens, key=lambda token: token.order))
            setting.synchronise()
            times.append(time.perf_counter() - begin)
        seconds, first = median(times[2:]), times[0]
        note = f"{setting.context} tokens a row; first step {first:.1f} s"
        report.add(Figure("decode", f"step of {num_rows} rows, {how}", seconds, "s", note=note))
        report.add(
            Figure(
                "decode",
                f"share of the bandwidth, {num_rows} rows, {how}",
                self._decode_bytes(num_rows) / seconds / self.bandwidth,
                "share",
            )
        )

    def _decode_bytes(self, num_rows: int) -> int:
        """What a step must read: the decoder's weights without adapters, and the keys and values of its rows."""
        decoder = self.model.decoder
        weights = sum(weight.nbytes for name, weight in decoder.named_parameters() if ".lora." not in name)
        return weights + num_rows * self.setting.context * KVCache.token_bytes(decoder.cache_specs(), self.model.dtype)

    @torch.inference_mode()
    def prefill(self, budget: Budget, report: Report) -> None:
        """Prompts without the engine, as a share of what the device can multiply."""
        setting = self.setting
        runner = ModelRunner(self.model, setting.cache_tokens)
        for count in (1, 8):
            arena, length = Arena(setting.cache_tokens), setting.prompt_tokens // count
            chunks = []
            for _ in range(count):
                extent = arena.allocate(length)
                assert extent is not None
                chunks.append(Chunk(extent, 0, [7 + place % 90 for place in range(length)], (), (), False, True))
            seconds = self._seconds(partial(runner.prefill, chunks), repeats=3)
            name = f"{count} x {length} tokens"
            report.add(Figure("prefill", name, seconds, "s"))
            share = self._prefill_operations(count, length) / seconds / self.arithmetic
            report.add(Figure("prefill", f"share of the arithmetic, {name}", share, "share"))
        self.setting.free()

    def _prefill_operations(self, count: int, length: int) -> float:
        """Multiplications and additions of the linears and of causal attention; logits of the last token alone."""
        decoder, config = self.model.decoder, self.model.config.decoder
        linears = sum(
            weight.numel()
            for name, weight in decoder.layers.named_parameters()
            if ".lora." not in name and weight.dim() == 2
        )
        attention = 2 * length**2 * config.num_heads * config.head_size * config.num_layers
        logits = 2 * config.vocab_size * config.hidden_size
        return count * (2.0 * linears * length + attention + logits)

    def engine(self, budget: Budget, report: Report) -> None:
        """The same work as the port's, through the engine."""
        setting = self.setting
        with setting.phi(self.model) as phi:
            for name, work, divisor in self.jobs(Ours(phi, setting.preset)):
                need(budget, 10 if setting.device.type == "cuda" else 0.5, name)
                self.ours[name] = self._seconds(work, repeats=2) / divisor
                report.add(Figure("engine", name, self.ours[name], "s"))
            self._memory(report)
        setting.free()

    def compiled_engine(self, budget: Budget, report: Report) -> None:
        """Compiled decoding through the engine, beside what was measured without compiling."""
        setting = self.setting
        with setting.phi(self.model, "compiled") as phi:
            side = Ours(phi, setting.preset)
            for count in (setting.rows[0], setting.rows[-1]):
                need(budget, 40 if setting.device.type == "cuda" else 0.5, f"compiled decoding of {count} rows")
                work = partial(side.generate, "text", count, setting.new_tokens)
                seconds = self._seconds(work, repeats=2) / setting.new_tokens
                name = f"{setting.new_tokens} tokens in each of {count} rows, per token, compiled"
                report.add(Figure("engine, compiled", name, seconds, "s"))
        setting.free()

    def jobs(self, side: Ours | Theirs) -> list[tuple[str, Callable[[], object], int]]:
        """Names, work, and what its time is divided by."""
        new, rows = self.setting.new_tokens, self.setting.rows
        jobs: list[tuple[str, Callable[[], object], int]] = [
            (f"{new} tokens in each of {count} rows, per token", partial(side.generate, "text", count, new), new)
            for count in rows
        ]
        jobs += [
            (
                f"{new} sampled tokens in each of {rows[-1]} rows, per token",
                partial(side.generate, "text", rows[-1], new, True),
                new,
            ),
            (f"text, image, audio, image+audio: {new} tokens each", side.mixed_batch, 1),
            ("first token of a clip of 10 s", partial(side.generate, "audio", 1, 1), 1),
        ]
        return jobs

    def _memory(self, report: Report) -> None:
        """The cache is as large as was asked for, and what else the engine takes."""
        setting, model = self.setting, self.model
        if setting.device.type != "cuda":
            return
        self.peak = peak = torch.cuda.max_memory_allocated(setting.device)
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        cache = setting.cache_tokens * KVCache.token_bytes(model.decoder.cache_specs(), model.dtype)
        report.add(Figure("memory", "most that was allocated", peak, "bytes"))
        report.add(Figure("memory", "weights", weights, "bytes"))
        report.add(Figure("memory", "KV cache", cache, "bytes", note=f"{setting.cache_tokens} tokens"))
        beside = peak - weights - cache
        report.add(Figure("memory", "beside weights and cache", beside, "bytes", passed=beside < 0.5 * weights))

    def asr(self, budget: Budget, report: Report) -> None:
        """Seconds of audio transcribed in a second, by the large model and by the bundled checkpoint."""
        setting = self.setting
        bundled = Phi4MM.from_pretrained(device=setting.device)
        with setting.phi(self.model) as large:
            for name, phi in (("large model", large), ("bundled checkpoint", bundled)):
                need(budget, 15 if setting.device.type == "cuda" else 0.5, f"the ASR job of the {name}")
                side = Ours(phi, setting.preset)
                rtfx = self.rtfx(partial(side.transcribed, clips(setting), self.asr_tokens))
                self.ours[f"ASR, {name}"] = rtfx
                report.add(Figure("ASR", name, rtfx, "x", note=self.asr_note))
        bundled.close()
        setting.free()

    @property
    def asr_tokens(self) -> int:
        return cases.job_tokens(int(self.setting.clip_seconds * cases.SAMPLING_RATE))

    @property
    def asr_note(self) -> str:
        setting = self.setting
        return f"{setting.num_clips} clips of {setting.clip_seconds:g} s, {self.asr_tokens} tokens each"

    def rtfx(self, work: Callable[[], object]) -> float:
        """Seconds of audio per second; the first run is not counted."""
        return self.setting.num_clips * self.setting.clip_seconds / self._seconds(work, repeats=1)

    def port(self, budget: Budget, report: Report) -> None:
        """The same work by transformers' port, of the same sizes, with random weights."""
        from phi4mm.bench.gpu_port import make_port

        setting = self.setting
        self.drop_model()
        torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default, which the engine changes
        need(budget, 30 if setting.device.type == "cuda" else 1, "transformers' port")
        port = make_port(setting)
        for name, work, divisor in self.jobs(port):
            if name in self.ours:
                need(budget, 10 if setting.device.type == "cuda" else 0.5, f"transformers' {name}")
                seconds = self._seconds(work, repeats=1) / divisor
                report.add(Figure("beside the port", name, self.ours[name], "s", port=seconds))
        name = "ASR, large model"
        if name in self.ours:
            need(budget, 20 if setting.device.type == "cuda" else 0.5, "transformers' ASR job")

            def job() -> None:
                for start in range(0, setting.num_clips, 16):
                    port.transcribed(clips(setting)[start : start + 16], self.asr_tokens, self.asr_tokens)

            rtfx = self.rtfx(job)
            note = f"{self.asr_note}; the port: batches of 16"
            report.add(Figure("beside the port", name, self.ours[name], "x", port=rtfx, note=note))

        self._peak_beside_the_port(report)

    def _peak_beside_the_port(self, report: Report) -> None:
        if self.peak is not None:
            peak = torch.cuda.max_memory_allocated(self.setting.device)
            note = f"ours with a KV cache of {self.setting.cache_tokens} tokens"
            name = "most memory that was allocated"
            report.add(Figure("beside the port", name, self.peak, "bytes", port=peak, note=note))

    def _seconds(self, work: Callable[[], Tensor | object], repeats: int = _REPEATS) -> float:
        """The median time of some work, after one run that is not counted."""
        times = []
        for _ in range(1 + repeats):
            self.setting.synchronise()
            start = time.perf_counter()
            work()
            self.setting.synchronise()
            times.append(time.perf_counter() - start)
        return median(times[1:])

"""Prometheus metrics, under the names that dashboards know from vLLM, with ``phi4mm:`` or another prefix."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from phi4mm.api import Phi4MM
from phi4mm.engine.handle import RowTimes

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """What is counted; each server has its own registry.

    Args:
        model: that runs in this process, if one does; its engine is asked for what it does now.
        prefix: of every name, before a colon.

    Attributes: one for each metric, of the metric's name without the prefix.
    """

    def __init__(self, model: Phi4MM | None, prefix: str = "phi4mm") -> None:
        registry = CollectorRegistry()

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"{prefix}:{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"{prefix}:{name}", help, buckets=buckets, registry=registry)

        self._registry = registry
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that were answered.")
        self.generation_tokens = counter("generation_tokens", "Tokens that were generated.")
        self.prefix_cache_hits = counter("prefix_cache_hits", "Prompt tokens that were not computed again.")
        self.request_success = counter("request_success", "Rows that ended, by reason.", ("finished_reason",))
        self.request_failures = counter("request_failures", "Requests that were refused or failed.", ("status",))
        self.admission_rejections = counter("admission_rejections", "Requests that were refused for load.", ("reason",))
        self.adapter_requests = counter("adapter_requests", "Requests by the adapters that answered.", ("adapter",))
        self.audio_seconds = counter("audio_seconds", "Seconds of audio that came in.")
        self.images = counter("images", "Images that came in.")
        self.time_to_first_token_seconds = histogram("time_to_first_token_seconds", "From arrival to the first text.")
        self.inter_token_latency_seconds = histogram(
            "inter_token_latency_seconds", "Between two tokens of a row, each of them.", _STEPS
        )
        self.e2e_request_latency_seconds = histogram("e2e_request_latency_seconds", "From arrival to the last token.")
        self.request_read_time_seconds = histogram("request_read_time_seconds", "Reading a request and its media.")
        self.request_queue_time_seconds = histogram(
            "request_queue_time_seconds",
            "Of a row in the engine, until it has a place; its media are encoded meanwhile.",
        )
        self.request_prefill_time_seconds = histogram(
            "request_prefill_time_seconds", "Of a row, from its place to its first token."
        )
        self.request_decode_time_seconds = histogram(
            "request_decode_time_seconds", "Of a row, from its first token to its last."
        )
        self.real_time_factor = histogram("real_time_factor", "Time to answer, by the audio's length.", _FACTORS)
        self.http_requests_in_flight = Gauge(f"{prefix}:http_requests_in_flight", "HTTP requests.", registry=registry)
        self.replicas_lost = counter(
            "replicas_lost", "Requests whose replica died, by what became of them.", ("outcome",)
        )
        if model is not None:
            registry.register(_EngineCollector(model, prefix))

    def observe_row(self, times: RowTimes | None) -> None:
        """Count the times of a row that ended."""
        if times is None or times.admitted is None or not times.tokens:
            return
        self.request_queue_time_seconds.observe(times.admitted - times.queued)
        self.request_prefill_time_seconds.observe(times.tokens[0] - times.admitted)
        self.request_decode_time_seconds.observe(times.tokens[-1] - times.tokens[0])
        for before, after in pairwise(times.tokens):
            self.inter_token_latency_seconds.observe(after - before)

    def render(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """What the engine does now, asked for when the metrics are."""

    def __init__(self, model: Phi4MM, prefix: str) -> None:
        self._model = model
        self._prefix = prefix

    def collect(self) -> Iterable[Metric]:
        stats = self._model.stats()
        used = stats.used_tokens / stats.cache_tokens if stats.cache_tokens else 0.0
        yield GaugeMetricFamily(f"{self._prefix}:num_requests_running", "Rows that are computed.", stats.running)
        yield GaugeMetricFamily(f"{self._prefix}:num_requests_waiting", "Rows that wait for a place.", stats.waiting)
        yield GaugeMetricFamily(
            f"{self._prefix}:kv_cache_usage_perc", "Share of the KV cache that is in use, 0 to 1.", used
        )
        info = GaugeMetricFamily(
            f"{self._prefix}:lora_requests_info",
            "Adapters of running and waiting rows, and how many are loaded: a batch may use all of them.",
            labels=("running_lora_adapters", "waiting_lora_adapters", "max_lora"),
        )
        info.add_metric(
            (",".join(stats.running_adapters), ",".join(stats.waiting_adapters), str(len(self._model.adapters.names))),
            1,
        )
        yield info

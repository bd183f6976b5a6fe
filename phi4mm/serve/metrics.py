"""Prometheus metrics, under the names that dashboards know from vLLM, with ``phi4mm:`` before them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from phi4mm.api import Phi4MM

PREFIX = "phi4mm:"
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """What is counted; each server has its own registry.

    Attributes: one for each metric, of the metric's name without the prefix.
    """

    def __init__(self, model: Phi4MM) -> None:
        registry = CollectorRegistry()

        def counter(name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(PREFIX + name, help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(PREFIX + name, help, buckets=buckets, registry=registry)

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
            "inter_token_latency_seconds", "Mean time between two tokens of a row.", _STEPS
        )
        self.e2e_request_latency_seconds = histogram("e2e_request_latency_seconds", "From arrival to the last token.")
        self.request_read_time_seconds = histogram("request_read_time_seconds", "Reading a request and its media.")
        self.request_decode_time_seconds = histogram("request_decode_time_seconds", "From the first text to the last.")
        self.real_time_factor = histogram("real_time_factor", "Time to answer, by the audio's length.", _FACTORS)
        self.http_requests_in_flight = Gauge(PREFIX + "http_requests_in_flight", "HTTP requests.", registry=registry)
        registry.register(_EngineCollector(model))

    def render(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """What the engine does now, asked for when the metrics are."""

    def __init__(self, model: Phi4MM) -> None:
        self._model = model

    def collect(self) -> Iterable[Metric]:
        stats = self._model.stats()
        used = stats.used_tokens / stats.cache_tokens if stats.cache_tokens else 0.0
        yield GaugeMetricFamily(PREFIX + "num_requests_running", "Rows that are computed.", stats.running)
        yield GaugeMetricFamily(PREFIX + "num_requests_waiting", "Rows that wait for a place.", stats.waiting)
        yield GaugeMetricFamily(PREFIX + "kv_cache_usage_perc", "Share of the KV cache that is in use, 0 to 1.", used)
        info = GaugeMetricFamily(
            PREFIX + "lora_requests_info",
            "Adapters that are loaded, and those of running and waiting rows.",
            labels=("running_lora_adapters", "waiting_lora_adapters", "max_lora"),
        )
        info.add_metric((",".join(stats.running_adapters), ",".join(stats.waiting_adapters), "0"), 1)
        yield info

"""What clients of a cluster reach: the checks of the app, then a replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from phi4mm.serve.admission import Admission
from phi4mm.serve.app import around
from phi4mm.serve.cluster.relay import Relay, Replicas
from phi4mm.serve.metrics import CONTENT_TYPE, Metrics
from phi4mm.serve.options import ServeOptions


class Cluster(Replicas, Protocol):
    """The replicas together."""

    async def count(self) -> int:
        """How many replicas take requests."""

    async def metrics(self) -> Mapping[str, bytes]:
        """The metrics of each replica that can be reached, by its name."""

    def abandon(self) -> None:
        """End what still runs."""


class Front:
    """What the endpoints of the front share, and what ``lifecycle.Server`` asks for.

    Attributes:
        shown: what the log says at the start.
    """

    def __init__(self, options: ServeOptions, cluster: Cluster, **shown: str | None) -> None:
        self.options = options
        self.cluster = cluster
        self.metrics = Metrics(None, options.metrics_prefix)
        self.admission = Admission(options.limits, options.model.max_rows, self.metrics)
        self.shown = {"model": options.names[0], **shown}

    def abandon(self) -> None:
        """End what still runs."""
        self.cluster.abandon()


def make_front(front: Front) -> Starlette:
    """The ASGI app."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        is_ready = not front.admission.draining and await front.cluster.count() > 0
        return JSONResponse({"status": "ok" if is_ready else "unavailable"}, 200 if is_ready else 503)

    async def metrics(request: Request) -> Response:
        parts = {"front": front.metrics.render(), **await front.cluster.metrics()}
        return Response(merged(parts), media_type=CONTENT_TYPE)

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Mount("/", Relay(front.cluster, front.admission, front.metrics)),
        ],
        middleware=around(front.options, front.metrics),
    )
    app.router.redirect_slashes = False
    app.state.service = front
    return app


class _Merged(Collector):
    def __init__(self, parts: Mapping[str, bytes]) -> None:
        self._families: dict[str, Metric] = {}
        for name, text in parts.items():
            for family in text_string_to_metric_families(text.decode()):
                whole = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "replica": name}, sample.value)

    def collect(self) -> list[Metric]:
        return list(self._families.values())


def merged(parts: Mapping[str, bytes]) -> bytes:
    """Metrics of several processes in one text; the label ``replica`` has the process's name."""
    registry = CollectorRegistry()
    registry.register(_Merged(parts))
    return generate_latest(registry)

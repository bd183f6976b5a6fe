"""How the server is set up, apart from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phi4mm.serve.limits import Limits


@dataclass(frozen=True)
class ModelOptions:
    """What is loaded: see ``Phi4MM.from_pretrained``; ``adapters`` are names with their folders."""

    source: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    threads: int | None = None
    max_rows: int = 64
    cache_tokens: int | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Security:
    """Who may do what.

    Attributes:
        api_keys: one of them is needed for all but health, metrics and the page; none: everybody may.
        admin_key: needed to load and unload adapters; ``None``: nobody may.
        adapters_root: the folder in which adapters that a request names must lie.
        cors_origins: web origins whose pages may call the server.
        allow_urls: whether media may be fetched from remote addresses.
        allowed_domains: the only ones to fetch from, with those below them; none: any.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_key: str | None = field(default=None, repr=False)
    adapters_root: Path | None = None
    cors_origins: tuple[str, ...] = ()
    allow_urls: bool = False
    allowed_domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchOptions:
    """Bounds of one remote file."""

    max_bytes: int = 32 << 20
    seconds: float = 20.0


@dataclass(frozen=True)
class ClusterOptions:
    """Replicas of the model, started by Ray Serve.

    Attributes:
        address: of a cluster, "auto" for the one that this machine belongs to, or "local" for one of this machine's.
        replicas: how many; with ``max_replicas`` the fewest.
        max_replicas: to which they may grow with the load.
        replica_gpus, replica_cpus: that each of them reserves; ``None``: one GPU where the cluster has any, and as many
            CPUs as it has threads, or one.
    """

    address: str
    replicas: int = 1
    max_replicas: int | None = None
    replica_gpus: float | None = None
    replica_cpus: float | None = None


@dataclass(frozen=True)
class ServeOptions:
    """All of it.

    Attributes:
        names: what clients call the model; the first is the one that replies carry.
        state_file: where adapters that were loaded by request are written, to be loaded again at the next start.
        drain_seconds: that running requests have after SIGTERM.
        ping_seconds: between comments in a stream in which nothing else happens.
        media_threads: that decode media.
        metrics_prefix: of the metrics' names, before a colon.
        cluster: where replicas run; ``None``: one model in this process.
        page: whether the page is served at ``/``.
        log_format: "text" or "json".
    """

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ("phi4mm",)
    model: ModelOptions = field(default_factory=ModelOptions)
    security: Security = field(default_factory=Security)
    limits: Limits = field(default_factory=Limits)
    fetch: FetchOptions = field(default_factory=FetchOptions)
    cluster: ClusterOptions | None = None
    state_file: Path | None = None
    drain_seconds: float = 30.0
    ping_seconds: float = 15.0
    media_threads: int = 2
    metrics_prefix: str = "phi4mm"
    page: bool = True
    log_format: str = "text"
    log_level: str = "info"
    tls_certificate: Path | None = None
    tls_key: Path | None = None

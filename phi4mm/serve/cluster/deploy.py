"""Start the replicas by Ray Serve, and a front for them."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from phi4mm.errors import Phi4MMError
from phi4mm.serve.cluster.front import Front, make_front
from phi4mm.serve.cluster.ray_replicas import RayReplicas
from phi4mm.serve.cluster.replica import Replica
from phi4mm.serve.lifecycle import Server
from phi4mm.serve.logs import log
from phi4mm.serve.options import ClusterOptions, ServeOptions
from phi4mm.serve.parser import PREFIX, make_parser, parse

LOCAL = "local"
APP, REPLICA, FRONT = "phi4mm", "Replica", "Front"
_HEALTH_SECONDS = 5.0
_FAILED_STARTS = 2
_CONNECT_SECONDS = 5.0


def serve_cluster(options: ServeOptions, bound: socket.socket) -> None:
    """Deploy replicas and serve them until a signal.

    Args:
        bound: where to listen.

    Raises:
        Phi4MMError: Ray cannot be reached, or no replica can be started.
    """
    assert options.cluster is not None
    with _connected(options.cluster), _deployed(options, options.cluster) as handle:
        front = Front(options, RayReplicas(handle), replicas=_counts(options.cluster), ray=options.cluster.address)
        Server(make_front(front), options).run([bound])


def build(arguments: Mapping[str, str]) -> serve.Application:
    """What ``serve deploy`` and KubeRay start: the replicas, and fronts behind Ray's own HTTP proxies.

    Args:
        arguments: options of ``python -m phi4mm.serve`` without their dashes, with values as in its environment
            variables; ``fronts`` is how many fronts there are. What they do not give is taken from the environment.

    Raises:
        Phi4MMError: one of them is not an option, or has a wrong value.
    """
    given = {name.replace("-", "_"): str(value) for name, value in {"ray": "auto", **arguments}.items()}
    fronts = int(given.pop("fronts", "1"))
    if unknown := given.keys() - {action.dest for action in make_parser()._actions}:
        raise Phi4MMError(f"{min(unknown)!r} is no option; expected those of python -m phi4mm.serve")
    options = parse([], {**os.environ, **{PREFIX + name.upper(): value for name, value in given.items()}})
    cluster = options.cluster
    assert cluster is not None
    if options.host == ServeOptions.host:  # it is Ray's proxies that listen, on the addresses of their nodes
        options = replace(options, host="0.0.0.0")

    def make() -> Starlette:
        handle = serve.get_deployment_handle(REPLICA, serve.get_replica_context().app_name)
        return make_front(Front(options, RayReplicas(handle)))

    class Ingress:
        def __init__(self, replicas: DeploymentHandle[Any]) -> None:
            pass  # that it is bound to them lets Ray start them first

    deployment = serve.deployment(
        name=FRONT,
        num_replicas=fronts,
        max_ongoing_requests=100_000,  # the front has its own bounds
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        graceful_shutdown_timeout_s=options.drain_seconds,
    )(serve.ingress(make)(Ingress))
    return deployment.bind(replicas(options, cluster))


def replicas(options: ServeOptions, cluster: ClusterOptions) -> serve.Application:
    """The deployment of the replicas.

    Each gets as many requests at a time as it takes alone, so that its metrics can still be asked for while rows wait;
    the others wait in the front.
    """
    cpus = cluster.replica_cpus or float(options.model.threads or 1)
    model = replace(options.model, threads=options.model.threads or max(1, int(cpus)))
    rows = options.model.max_rows
    count: dict[str, Any] = {"num_replicas": cluster.replicas}
    if cluster.max_replicas is not None and cluster.max_replicas > cluster.replicas:
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cluster.replicas,
                max_replicas=cluster.max_replicas,
                target_ongoing_requests=max(1.0, rows / 2),
            )
        }
    deployment = serve.deployment(
        name=REPLICA,
        ray_actor_options={"num_cpus": cpus, "num_gpus": _gpus(options, cluster)},
        max_ongoing_requests=rows + options.limits.max_queue,
        max_queued_requests=options.limits.max_queue,
        graceful_shutdown_timeout_s=options.drain_seconds,
        health_check_period_s=_HEALTH_SECONDS,
        max_constructor_retry_count=_FAILED_STARTS,
        logging_config={"log_level": "WARNING", "enable_access_log": False},  # the app has its own log
        **count,
    )(Replica)
    return deployment.bind(replace(options, model=model))


@contextmanager
def _connected(cluster: ClusterOptions) -> Iterator[None]:
    if cluster.address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        most = max(cluster.replicas, cluster.max_replicas or 0)
        cpus = max(os.cpu_count() or 1, int(most * (cluster.replica_cpus or 1)))
        settings: dict[str, Any] = {"address": LOCAL, "num_cpus": cpus, "include_dashboard": False}
    else:
        _check_reachable(cluster.address)
        settings = {"address": cluster.address}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**settings, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
        raise _unreachable(cluster.address, error) from error
    signal.signal(signal.SIGTERM, handler)  # Ray's ends the process without a word
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _deployed(options: ServeOptions, cluster: ClusterOptions) -> Iterator[DeploymentHandle[Any]]:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    log("deploying", replicas=_counts(cluster), ray=cluster.address)
    serve.start(proxy_location=ProxyLocation.Disabled)
    try:
        try:
            handle = serve.run(replicas(options, cluster), name=APP, route_prefix=None)
        except RuntimeError as error:
            raise Phi4MMError(f"no replica can be started: {_why_not() or error}") from error
        yield handle
    finally:
        serve.delete(APP)


def _why_not() -> str:
    """The last line of what Ray Serve has of a replica that could not be started: the error's own."""
    found = serve.status().applications.get(APP)
    message = found.deployments[REPLICA].message if found is not None and REPLICA in found.deployments else ""
    errors = [line for line in message.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line)]
    return errors[-1].partition(": ")[2] if errors else message


def _check_reachable(address: str) -> None:
    """Ray itself waits for a minute, and then ends the process."""
    host, colon, port = address.rpartition(":")
    if "://" in address or (address != "auto" and not (colon and host and port.isdecimal())):
        raise Phi4MMError(f"--ray is {address!r}; expected local, auto, or HOST:PORT of a cluster this machine is in")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> Phi4MMError:
    return Phi4MMError(f"--ray {address}: cannot be connected to ({error}); start a cluster there by ray start --head")


def _gpus(options: ServeOptions, cluster: ClusterOptions) -> float:
    if cluster.replica_gpus is not None:
        return cluster.replica_gpus
    on_gpu = options.model.device.startswith("cuda") or (
        options.model.device == "auto" and ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    )
    return 1.0 if on_gpu else 0.0


def _counts(cluster: ClusterOptions) -> str:
    return f"{cluster.replicas}" if cluster.max_replicas is None else f"{cluster.replicas}-{cluster.max_replicas}"

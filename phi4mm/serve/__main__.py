"""``python -m phi4mm.serve``: load a checkpoint and serve it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from phi4mm.cli import exit_code, prepare_environment, report
from phi4mm.errors import Phi4MMError, install_hint

if TYPE_CHECKING:
    from phi4mm.serve.options import ServeOptions

PROGRAM = "phi4mm.serve"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        import fastapi
        import prometheus_client
        import python_multipart
        import uvicorn
    except ImportError as error:
        report(PROGRAM, f"the server needs {error.name}: {install_hint('serve')}")
        return 1
    del fastapi, prometheus_client, python_multipart, uvicorn
    return exit_code(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    from phi4mm.serve.parser import parse

    try:
        options = parse(arguments)
    except Phi4MMError as error:
        report(PROGRAM, error)
        return 2
    prepare_environment(options.model.threads)

    if options.cluster is not None:
        return _run_cluster(options)

    from phi4mm.serve import logs
    from phi4mm.serve.app import make_app
    from phi4mm.serve.lifecycle import Server, bind
    from phi4mm.serve.loading import load_model
    from phi4mm.serve.service import Service

    logs.configure(options.log_format, options.log_level)
    with bind(options.host, options.port) as bound, load_model(options.model) as model:
        service = Service(model, options)
        for problem in service.adapters.restore():
            logs.log(problem, logging.WARNING)
        if options.host not in _LOOPBACK and not options.security.api_keys:
            logs.log("everybody who reaches this address may use the server: it has no API keys", logging.WARNING)
        service.thread_job(model.prepare_grammars)
        Server(make_app(service), options).run([bound])
    return 0


def _run_cluster(options: ServeOptions) -> int:
    try:
        import ray.serve
    except ImportError as error:
        report(PROGRAM, f"--ray needs {error.name}: {install_hint('ray')}")
        return 1
    del ray

    from phi4mm.serve import logs
    from phi4mm.serve.cluster.deploy import serve_cluster
    from phi4mm.serve.lifecycle import bind

    logs.configure(options.log_format, options.log_level)
    with bind(options.host, options.port) as bound:
        serve_cluster(options, bound)
    return 0


if __name__ == "__main__":
    sys.exit(main())

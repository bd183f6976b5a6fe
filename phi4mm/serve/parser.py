"""The command line of the server; every option is an environment variable too."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from phi4mm.errors import Phi4MMError
from phi4mm.serve.limits import Limits
from phi4mm.serve.options import ClusterOptions, FetchOptions, ModelOptions, Security, ServeOptions

PREFIX = "PHI4MM_SERVE_"
KEYS_VARIABLE, ADMIN_VARIABLE = PREFIX + "API_KEYS", PREFIX + "ADMIN_KEY"
STATE_FILE = "loaded-adapters.json"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m phi4mm.serve",
        description="Serve a checkpoint by OpenAI's endpoints.",
        epilog=f"Every option is also an environment variable: --max-rows 8 is {PREFIX}MAX_ROWS=8; one that may be "
        f"repeated takes its values separated by commas. Keys: {KEYS_VARIABLE}=KEY,KEY and {ADMIN_VARIABLE}=KEY, or a "
        "file. SIGTERM or Ctrl-C: what runs is finished, then the exit code is 0; a second one ends it at once.",
    )
    _add_server(parser.add_argument_group("server"))
    _add_model(parser.add_argument_group("model"))
    _add_security(parser.add_argument_group("security"))
    _add_cluster(parser.add_argument_group("cluster"))
    group = parser.add_argument_group("limits")
    for one in fields(Limits):
        kind = float if isinstance(one.default, float) else int
        shown = "" if one.default is None else f" ({one.default:,})"
        group.add_argument(
            _option(one.name), type=kind, default=one.default, metavar="N", help=one.metadata["help"] + shown
        )
    return parser


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (8000)")
    group.add_argument(
        "--served-name", action="append", default=[], metavar="NAME", help="what clients call the model; repeatable"
    )
    group.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve https with this certificate chain")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="of the certificate")
    group.add_argument(
        "--metrics-prefix",
        default="phi4mm",
        metavar="NAME",
        help="of metrics; vllm: as vLLM's dashboards look for (phi4mm)",
    )
    group.add_argument("--no-page", action="store_true", help="serve no page at /")
    group.add_argument("--log-format", choices=("text", "json"), default="text", help="of standard error (text)")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(info)")
    group.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="S", help="that running requests have at the end (30)"
    )
    group.add_argument("--ping-seconds", type=float, default=15.0, metavar="S", help="between comments in streams (15)")


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="SOURCE", help="a checkpoint folder or a hub id (the bundled checkpoint)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="precision (auto)"
    )
    group.add_argument("--quantize", choices=("int8", "int4"), help="the decoder's weights, on a CPU")
    group.add_argument("--threads", type=int, metavar="N", help="on a CPU (as many as it has cores)")
    group.add_argument("--max-rows", type=int, default=64, metavar="N", help="rows that are decoded together (64)")
    group.add_argument("--cache-tokens", type=int, metavar="N", help="that the KV cache holds (by the free memory)")
    group.add_argument("--media-threads", type=int, default=2, metavar="N", help="that decode images and audio (2)")
    group.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=FOLDER", help="a LoRA adapter to load; repeatable"
    )


def _add_security(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys of clients, one a line (no key needed)")
    group.add_argument("--admin-key-file", type=Path, metavar="FILE", help="the key for loading adapters (none may)")
    group.add_argument("--adapters-root", type=Path, metavar="FOLDER", help="where adapters to be loaded must lie")
    group.add_argument(
        "--adapters-file", type=Path, metavar="FILE", help=f"the list of those loaded ({STATE_FILE} in the root)"
    )
    group.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="whose pages may call (none)"
    )
    group.add_argument("--allow-urls", action="store_true", help="fetch media from public http and https addresses")
    group.add_argument(
        "--allowed-domain",
        action="append",
        default=[],
        metavar="DOMAIN",
        help="the only ones to fetch from; repeatable",
    )
    group.add_argument(
        "--fetch-bytes", type=int, default=FetchOptions.max_bytes, metavar="N", help="of a file (32 MiB)"
    )
    group.add_argument(
        "--fetch-seconds", type=float, default=FetchOptions.seconds, metavar="S", help="that fetching may take (20)"
    )


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run replicas by Ray Serve: local, auto, or a cluster's HOST:PORT (no replicas)",
    )
    group.add_argument("--replicas", type=int, metavar="N", help="that run at least (1)")
    group.add_argument("--max-replicas", type=int, metavar="N", help="that may run under load (no more)")
    group.add_argument(
        "--replica-gpus", type=float, metavar="N", help="that each reserves; a part is allowed (1 where there are any)"
    )
    group.add_argument(
        "--replica-cpus", type=float, metavar="N", help="that each reserves (as many as --threads, or 1)"
    )


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> ServeOptions:
    """The options of a command line; what it does not give is taken from the environment, then from the defaults.

    Raises:
        Phi4MMError: a value is out of range, or a file of keys cannot be read.
        SystemExit: the command line is wrong, or asks for help.
    """
    parser = make_parser()
    given = [*_from_environment(parser, environment), *(sys.argv[1:] if arguments is None else arguments)]
    return _options(parser.parse_args(given), environment)


def _options(values: argparse.Namespace, environment: Mapping[str, str]) -> ServeOptions:
    limits = Limits(**{one.name: getattr(values, one.name) for one in fields(Limits)})
    if values.allowed_domain and not values.allow_urls:
        raise Phi4MMError("--allowed-domain is given without --allow-urls; give both")
    if (values.tls_certificate is None) != (values.tls_key is None):
        raise Phi4MMError("--tls-certificate and --tls-key go together; give both")
    for name in ("drain_seconds", "ping_seconds", "fetch_seconds", "fetch_bytes", "media_threads"):
        if not getattr(values, name) > 0:
            raise Phi4MMError(f"{_option(name)} is {getattr(values, name)}; expected more than 0")
    if not re.fullmatch(r"[A-Za-z_]\w*", values.metrics_prefix, re.ASCII):
        raise Phi4MMError(f"--metrics-prefix is {values.metrics_prefix!r}; expected letters, digits and _")
    admin = _keys(values.admin_key_file, environment.get(ADMIN_VARIABLE), ADMIN_VARIABLE)
    if len(admin) > 1:
        raise Phi4MMError("there are several admin keys; expected one")
    root = values.adapters_root
    if root is not None and not root.is_dir():
        raise Phi4MMError(f"--adapters-root {root}: there is no such folder")
    return ServeOptions(
        host=values.host,
        port=values.port,
        names=tuple(values.served_name) or _names(values.model),
        model=ModelOptions(
            source=values.model,
            device=values.device,
            dtype=values.dtype,
            quantize=values.quantize,
            threads=values.threads,
            max_rows=values.max_rows,
            cache_tokens=values.cache_tokens,
            adapters=dict(map(_adapter, values.adapter)),
        ),
        security=Security(
            api_keys=_keys(values.api_key_file, environment.get(KEYS_VARIABLE), KEYS_VARIABLE),
            admin_key=admin[0] if admin else None,
            adapters_root=root,
            cors_origins=tuple(values.cors_origin),
            allow_urls=values.allow_urls,
            allowed_domains=tuple(values.allowed_domain),
        ),
        limits=limits,
        fetch=FetchOptions(values.fetch_bytes, values.fetch_seconds),
        cluster=_cluster(values),
        state_file=values.adapters_file or (root / STATE_FILE if root is not None else None),
        drain_seconds=values.drain_seconds,
        ping_seconds=values.ping_seconds,
        media_threads=values.media_threads,
        metrics_prefix=values.metrics_prefix,
        page=not values.no_page,
        log_format=values.log_format,
        log_level=values.log_level,
        tls_certificate=values.tls_certificate,
        tls_key=values.tls_key,
    )


def _cluster(values: argparse.Namespace) -> ClusterOptions | None:
    given = {
        name: value
        for name in ("replicas", "max_replicas", "replica_gpus", "replica_cpus")
        if (value := getattr(values, name)) is not None
    }
    if values.ray is None:
        if given:
            raise Phi4MMError(f"{_option(next(iter(given)))} is given without --ray; give both")
        return None
    least = {"replicas": 1, "max_replicas": given.get("replicas", 1)}
    for name, value in given.items():
        if not value >= least.get(name, 0):
            raise Phi4MMError(f"{_option(name)} is {value}; expected {least.get(name, 0)} or more")
    return ClusterOptions(values.ray, **given)


def _from_environment(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> list[str]:
    """What the environment gives, as arguments."""
    given: list[str] = []
    for action in parser._actions:
        name = PREFIX + action.dest.upper()
        if action.dest == "help" or name not in environment:
            continue
        value, option = environment[name], action.option_strings[-1]
        if isinstance(action.default, list):
            given += [f"{option}={one.strip()}" for one in value.split(",") if one.strip()]
        elif action.nargs != 0:
            given.append(f"{option}={value}")
        elif value.lower() in _TRUE:
            given.append(option)
        elif value.lower() not in _FALSE:
            parser.error(f"{name} is {value!r}; expected 1 or 0")
    return given


def _keys(file: Path | None, value: str | None, variable: str) -> tuple[str, ...]:
    """Keys from a file, one a line, and from the environment, separated by commas."""
    keys = [] if value is None else value.split(",")
    if file is not None:
        try:
            keys += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Phi4MMError(f"{file}: cannot be read as a file of keys ({error})") from error
    found = tuple(key.strip() for key in keys if key.strip())
    if not found and (file is not None or value is not None):
        raise Phi4MMError(f"{file or variable} holds no key; expected one, or leave it out")
    return found


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise Phi4MMError(f"--adapter is {text!r}; expected NAME=FOLDER")
    return name, Path(folder)


def _names(source: str | None) -> tuple[str, ...]:
    """What the model is called by default: its source, and "phi4mm"."""
    if source is None:
        return ("phi4mm",)
    return (Path(source).resolve().name if Path(source).is_dir() else source, "phi4mm")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

"""What is written down of a run: versions, machine and commit, so that its numbers can be understood later."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import phi4mm
from eval_asr.backends import BackendOptions
from eval_asr.clips import Source
from eval_asr.errors import ResultsError
from eval_asr.names import SetName
from eval_asr.records import RunSettings, Session, Timing, read_settings, write_settings
from eval_asr.run import RunOptions

_PACKAGES = (
    "torch", "transformers", "numpy", "soxr", "soundfile", "datasets", "faster-whisper", "ctranslate2",
    "pocketsphinx",
)  # fmt: skip


def check_settings(manifest: Path, source: Source, backend: BackendOptions, options: RunOptions) -> RunSettings | None:
    """The settings beside a manifest, where it may be gone on with; ``None`` where nothing was run yet.

    Raises:
        ResultsError: the manifest was made with other options, or without settings.
    """
    has_rows = manifest.exists() and manifest.stat().st_size > 0
    before = read_settings(manifest) if has_rows else None  # a run that wrote nothing binds nobody
    if before is None:
        if has_rows:
            raise ResultsError(f"{manifest}: is there without its .run.json; name another --out, or remove it")
        return None
    for key, value in _depends_on(source, backend, options).items():
        if before.options.get(key) != value:
            raise ResultsError(
                f"{manifest}: was made with {key} {before.options.get(key)!r}, not {value!r}; "
                "name another --out, or give the options of before"
            )
    return before


def prepare_settings(manifest: Path, source: Source, backend: BackendOptions, options: RunOptions) -> None:
    """Write the settings beside a manifest, or add a session to those that are there.

    Raises:
        ResultsError: as ``check_settings``, or they cannot be written.
    """
    before = check_settings(manifest, source, backend, options)
    corpus_clips = None if source.streamed else len(list(source.open_clips()))
    bounds = [number for number in (corpus_clips, options.limit) if number is not None]
    known_end = before is not None and before.num_clips is not None and source.streamed
    settings = RunSettings(
        name=SetName(backend.label, source.path, source.name, source.split) if before is None else before.name,
        source=source.spec,
        language=source.language,
        audio_root=None if source.audio_root is None else str(source.audio_root),
        options=_depends_on(source, backend, options),
        sessions=(*(() if before is None else before.sessions), this_session()),
        corpus=None if source.location is None else str(source.location),
        num_clips=before.num_clips if before is not None and known_end else min(bounds, default=None),
        corpus_clips=corpus_clips,
    )
    write_settings(manifest, settings)


def record_end(manifest: Path, timing: Timing, num_clips: int) -> None:
    """Write into the settings beside a manifest that the run has come to its end.

    Args:
        manifest: of the run.
        timing: where this session's time went.
        num_clips: that the run was of, known for certain now.

    Raises:
        ResultsError: the settings are gone, or cannot be written.
    """
    settings = read_settings(manifest)
    if settings is None:
        raise ResultsError(f"{manifest}: its .run.json is gone; its rows are whole: name another --out to run again")
    *before, last = settings.sessions
    sessions = (*before, replace(last, timing=timing))
    write_settings(manifest, replace(settings, sessions=sessions, num_clips=num_clips))


def _depends_on(source: Source, backend: BackendOptions, options: RunOptions) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        "backend": backend.backend,
        "model": backend.model,
        "device": backend.device,
        "dtype": backend.dtype,
        "prompt": backend.prompt,
        "language": source.language,
        "max_new_tokens": backend.max_new_tokens,
        "batch_size": options.batch_size,
        "limit": options.limit,
        "seed": options.seed,
        "streaming": source.streamed,
    }


def this_session() -> Session:
    """This process, now."""
    return Session(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "phi4mm": phi4mm.__version__,
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
        machine=_machine(),
        commit=_commit(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [],
    }
    if torch.cuda.is_available():
        machine["accelerators"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return machine


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one; with "+" where files were changed."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(*command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *command], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()

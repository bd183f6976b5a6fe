"""Where a checkpoint lies: a folder, a repository of the Hugging Face hub, or the one that comes with the package."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4mm.errors import CheckpointError

_PACKAGE = Path(__file__).parent.parent
# Everything that a load reads, and no pickles; the pattern's "*" crosses folders, so adapters come along.
_DOWNLOADED = ["*.json", "*.safetensors"]
_MAX_JSON_BYTES = 200_000_000
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A checkpoint's folder, and the folder that holds one folder per adapter in our own layout."""

    folder: Path
    adapters: Path


def locate(source: str | os.PathLike[str] | None, revision: str | None = None) -> Source:
    """Find a checkpoint, downloading it if it is named by its hub id.

    Args:
        source: a folder; a hub id such as "microsoft/Phi-4-multimodal-instruct", where no folder has that name; or
            ``None`` for the bundled checkpoint.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: there is no such folder or repository, or it cannot be downloaded.
    """
    if source is None:
        return _bundled()
    folder = Path(source).expanduser()
    if not folder.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
        folder = _download(source, revision)
    elif revision is not None:
        raise CheckpointError(f"{folder}: revision {revision!r} was given, but only a hub id has one; leave it out")
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder}: {state}; expected a checkpoint folder (with config.json and safetensors) or a hub id "
            'such as "microsoft/Phi-4-multimodal-instruct"'
        )
    bundled = _find_bundled()
    return bundled if bundled and folder.samefile(bundled.folder) else Source(folder, folder / "adapters")


def _find_bundled() -> Source | None:
    """The checkpoint that comes with the package: inside it in a wheel, beside it in a checkout."""
    for root in (_PACKAGE / "_bundled", _PACKAGE.parent):
        if (root / "assets" / "config.json").is_file():
            return Source(root / "assets", root / "adapters")
    return None


def _bundled() -> Source:
    bundled = _find_bundled()
    if bundled is not None:
        return bundled
    raise CheckpointError(
        f"{_PACKAGE}: the bundled checkpoint is not in this installation; reinstall phi4mm or name a folder or a hub id"
    )


def _download(hub_id: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=_DOWNLOADED))
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and the system's
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{hub_id}: there is no such folder, and downloading it from the hub{at} failed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); check the name and the network, "
            "or download it elsewhere and pass the folder"
        ) from error


def tokenizer_file(folder: Path) -> Path:
    """The folder's ``tokenizer.json``.

    Raises:
        CheckpointError: it is absent, or not a file in the folder.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        check_file(path, folder)
        return path
    hint = "copy tokenizer.json of the checkpoint it was made from into the folder"
    if (folder / "vocab.json").exists():
        hint = "vocab.json is not enough: save the tokenizer with transformers' AutoTokenizer, which writes the file"
    raise CheckpointError(f"{path}: the tokenizer is missing; {hint}")


def check_inside(path: Path, root: Path) -> None:
    """Refuse a path that leads out of the folder ``root``, through a symbolic link too.

    Links of the hub's cache are followed: a snapshot's files are links to the "blobs" folder beside the snapshots.

    Raises:
        CheckpointError: it leads elsewhere.
    """
    target = path.resolve()
    is_blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not (is_blob or target.is_relative_to(root.resolve())):
        raise CheckpointError(
            f"{path}: leads to {target}, outside the folder {root}; put the file itself there, not a link"
        )


def check_file(path: Path, root: Path) -> None:
    """Refuse what is there but is no file, such as a named pipe, or leads out of the folder ``root``.

    Raises:
        CheckpointError: it is one of these.
    """
    check_inside(path, root)
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is absent, leads out of its folder, is no regular file, is too large, is not JSON, or
            holds something else than an object.
    """
    try:
        size = path.stat().st_size
        check_file(path, path.parent)
        if size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {_MAX_JSON_BYTES}; download it again")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing; a checkpoint folder needs it") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error!s:.200}); download or save it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}; save it again")
    return values

"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from phi4mm.files import written_whole


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes ``path``, whose folder is made, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        yield part


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with replaced(path) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)


def read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def write_json(path: Path, value: Any) -> None:
    with replaced(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines."""
    with replaced(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

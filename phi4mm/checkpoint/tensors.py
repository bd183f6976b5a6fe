"""Reading safetensors: sharded, memory-mapped, checked by name and shape before any data is read."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phi4mm.checkpoint.source import check_file, read_json
from phi4mm.errors import CheckpointError

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    # As they are: a checkpoint with scales beside them has tensors that are unknown here.
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_NAMES_SHOWN = 10
_BYTES_PER_MAPPING = 2**26


def find_shards(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files of a folder: ``{stem}.safetensors``, or those that the index names.

    Raises:
        CheckpointError: there are none, one is missing, lies outside the folder or is no safetensors file.
    """
    single = folder / f"{stem}.safetensors"
    if single.exists():
        check_file(single, folder)
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise CheckpointError(
                f"{folder}: only pickled weights, which can run code when read; save them as safetensors "
                "(transformers: model.save_pretrained(folder)) and load that"
            )
        raise CheckpointError(f"{folder}: neither {single.name} nor {index.name} is there; download the weights again")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index}: expected a weight_map of tensor names to file names; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        # Lexically: the files of a hub snapshot are links to elsewhere.
        if any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
            raise CheckpointError(f"{index}: names {name!r}, outside the folder; do not trust this checkpoint")
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names {name!r:.80}; only safetensors files are read, as others can run code: save the "
                "weights as safetensors"
            )
        if "\0" in name or not (folder / name).exists():
            raise CheckpointError(
                f"{index}: the shard {name!r:.80} is missing, and the index names it; download it again"
            )
        check_file(folder / name, folder)
    return [folder / name for name in names]


class TensorFiles:
    """The tensors of some safetensors files, by name. Data is read when asked for.

    Attributes:
        shapes: of every tensor.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._mapped: dict[Path, Any] = {}
        self._bytes_read = 0
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a dict
                        view = file.get_slice(name)
                        self.shapes[name] = tuple(view.get_shape())
                        self._dtypes[name] = view.get_dtype()
                        self._paths[name] = path
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path}: not a whole safetensors file ({error}); download or save it again"
                ) from error

    def __str__(self) -> str:
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)

    def dtype(self, name: str) -> torch.dtype:
        return _FLOATS[self._dtypes[name]]

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped (private: writing to it does not reach the file).

        The mapping is renewed now and then, so that what was read and converted does not stay in memory; tensors that
        are still in use keep theirs.
        """
        if self._bytes_read > _BYTES_PER_MAPPING:
            self._mapped, self._bytes_read = {}, 0
        path = self._paths[name]
        if path not in self._mapped:
            self._mapped[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._mapped[path].get_tensor(name)
        self._bytes_read += tensor.nbytes
        return tensor

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Set[str] = frozenset()) -> None:
        """Compare names, shapes and types with what the model expects.

        Args:
            expected: name -> shape.
            ignored: further names that may be there.

        Raises:
            CheckpointError: naming every tensor that is missing, misshapen, of a type other than floating point, or
                unknown.
        """
        missing = [name for name in expected if name not in self.shapes]
        found = [name for name in expected if name in self.shapes]
        misshapen = [
            f"{name} (expected {list(expected[name])}, found {list(self.shapes[name])})"
            for name in found
            if self.shapes[name] != expected[name]
        ]
        mistyped = [f"{name} ({self._dtypes[name]})" for name in found if self._dtypes[name] not in _FLOATS]
        unknown = [name for name in self.shapes if name not in expected and name not in ignored]
        kinds = {"missing": missing, "misshapen": misshapen, "not floating point": mistyped, "unknown": unknown}
        problems = [_listed(kind, names) for kind, names in kinds.items() if names]
        if problems:
            raise CheckpointError(
                f"{self}: {'; '.join(problems)}; expected the tensors that the configuration beside it describes: "
                "check that both come from the same checkpoint"
            )


def _listed(kind: str, names: list[str]) -> str:
    """For example "2 missing tensors: a, b"."""
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} {kind} tensor{'s' if len(names) > 1 else ''}: {shown}{more}"

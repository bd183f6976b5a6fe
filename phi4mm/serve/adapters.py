"""Adapters that are loaded and unloaded by request, and loaded again at the next start."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from phi4mm.adapters import Adapters
from phi4mm.errors import AdapterError, Phi4MMError
from phi4mm.files import written_whole


class AdapterStore:
    """The adapters of the model, as far as clients may change them. Its methods block; call them in a thread.

    Args:
        adapters: of the model.
        state_file: where the list is kept, written whole or not at all; ``None``: it is not kept.
        root: in which the folders must lie; ``None``: none may be loaded.
    """

    def __init__(self, adapters: Adapters, state_file: Path | None, root: Path | None) -> None:
        self._adapters = adapters
        self._state_file = state_file
        self._root = None if root is None else root.resolve()
        self._changing = threading.Lock()
        self._loaded: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of all adapters of the model."""
        return self._adapters.names

    def load(self, name: str, path: str) -> None:
        """Load an adapter.

        Raises:
            AdapterError: the folder is not under the root, or the name is taken or not allowed.
            CheckpointError: what is in the folder is not an adapter of this model.
        """
        folder = self._allowed(path)
        with self._changing:
            self._adapters.load(name, folder)
            self._loaded[name] = str(folder)
            self._write()

    def unload(self, name: str) -> None:
        """Unload an adapter that was loaded by request.

        Raises:
            AdapterError: there is no such adapter, or it came with the model.
        """
        with self._changing:
            if name not in self._loaded:
                raise AdapterError(f"adapter {name!r} was not loaded by request; those are {sorted(self._loaded)}")
            self._adapters.unload(name)
            del self._loaded[name]
            self._write()

    def restore(self) -> list[str]:
        """Load what the list of the last run has; returns what is wrong with those that cannot be loaded any more,
        which are dropped from the list."""
        if self._state_file is None or not self._state_file.exists():
            return []
        try:
            kept = json.loads(self._state_file.read_text(encoding="utf-8"))["adapters"]
            entries = [(str(name), str(path)) for name, path in kept.items()]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise AdapterError(
                f"{self._state_file}: is not a list of adapters ({type(error).__name__}); remove or correct the file"
            ) from error
        problems = []
        with self._changing:
            for name, path in entries:
                try:
                    self._adapters.load(name, self._allowed(path))
                    self._loaded[name] = path
                except Phi4MMError as error:
                    problems.append(f"adapter {name!r} is not loaded again: {error}")
            if problems:
                self._write()
        return problems

    def _allowed(self, path: str) -> Path:
        if self._root is None:
            raise AdapterError("this server loads no adapters by request; start it with --adapters-root")
        if "\0" in path:
            raise AdapterError("the folder's path has a NUL character")
        folder = Path(os.path.realpath(self._root / path))
        if not folder.is_relative_to(self._root) or folder == self._root:
            raise AdapterError("the folder is not under the server's root for adapters; give a path under it")
        return folder

    def _write(self) -> None:
        if self._state_file is None:
            return
        text = json.dumps(self._kept(), indent=2, ensure_ascii=False) + "\n"
        with written_whole(self._state_file) as partial:
            partial.write_text(text, encoding="utf-8")
            with partial.open("rb") as file:
                os.fsync(file.fileno())

    def _kept(self) -> dict[str, dict[str, str]]:
        """What the list has."""
        return {"adapters": self._loaded}

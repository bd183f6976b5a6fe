"""The adapters of one replica, kept the same as those of the others by a list in a folder that all of them see."""

from __future__ import annotations

import json
import os
import secrets
import threading
from pathlib import Path

from filelock import FileLock

from phi4mm.adapters import Adapters
from phi4mm.errors import AdapterError, Phi4MMError
from phi4mm.serve.adapters import AdapterStore


class SharedAdapters(AdapterStore):
    """As ``AdapterStore``; what another replica has loaded or unloaded is followed by ``follow``.

    The list also has a version of each adapter, so that one that is unloaded and loaded again is seen.
    """

    def __init__(self, adapters: Adapters, state_file: Path | None, root: Path | None) -> None:
        super().__init__(adapters, state_file, root)
        self._versions: dict[str, str] = {}
        self._seen: tuple[int, ...] | None = None
        self._leaving: set[str] = set()

    def changed(self) -> bool:
        """Whether the list is another than the one that was followed last. It takes one look at the file."""
        return self._signature() != self._seen

    def load(self, name: str, path: str) -> None:
        with self._alone():
            self.follow()
            if name not in self._loaded:
                self._versions[name] = secrets.token_hex(8)
            super().load(name, path)
            self._seen = self._signature()

    def unload(self, name: str) -> None:
        with self._alone():
            self.follow()
            super().unload(name)
            self._versions.pop(name, None)
            self._seen = self._signature()

    def follow(self) -> list[str]:
        """Load and unload what others did; returns what is wrong with those that cannot be loaded here. An adapter that
        rows still use is unloaded when they have ended, without waiting for them.

        Raises:
            AdapterError: the file is not such a list.
        """
        if self._state_file is None:
            return []
        problems = []
        with self._changing:
            seen = self._signature()
            wanted = self._read()
            for name in [name for name in self._loaded if wanted.get(name, ("", ""))[1] != self._versions.get(name)]:
                self._leave(name)
            for name, (path, version) in wanted.items():
                if name in self._leaving:
                    seen = None  # its rows have not ended: look again with the next request
                elif name not in self._loaded:
                    try:
                        self._adapters.load(name, self._allowed(path))
                        self._loaded[name] = path
                        self._versions[name] = version
                    except Phi4MMError as error:
                        problems.append(f"adapter {name!r} is not loaded here: {error}")
            self._seen = seen
        return problems

    def _leave(self, name: str) -> None:
        del self._loaded[name]
        del self._versions[name]
        self._leaving.add(name)
        leaving = threading.Thread(target=self._unload_unused, args=(name,), daemon=True)
        leaving.start()
        leaving.join(0.1)  # where nothing uses it, it is gone at once

    def _unload_unused(self, name: str) -> None:
        self._adapters.unload(name)
        self._leaving.discard(name)

    def _signature(self) -> tuple[int, ...] | None:
        if self._state_file is None:
            return None
        try:
            found = os.stat(self._state_file)
        except FileNotFoundError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, tuple[str, str]]:
        """Folder and version of each adapter in the list."""
        assert self._state_file is not None
        try:
            kept = json.loads(self._state_file.read_text(encoding="utf-8"))
            versions = kept.get("versions", {})
            return {str(name): (str(path), str(versions.get(name, ""))) for name, path in kept["adapters"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise AdapterError(
                f"{self._state_file}: is not a list of adapters ({type(error).__name__}); remove or correct the file"
            ) from error

    def _kept(self) -> dict[str, dict[str, str]]:
        versions = {name: self._versions[name] for name in self._loaded if name in self._versions}
        return {**super()._kept(), "versions": versions}

    def _alone(self) -> FileLock:
        """Only one replica changes the list at a time."""
        if self._state_file is None:
            raise AdapterError("this server loads no adapters by request; start it with --adapters-root")
        return FileLock(f"{self._state_file}.lock")

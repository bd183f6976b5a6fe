"""The adapters of a running model: which are loaded, loading more, unloading them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from phi4mm.checkpoint.peft_folder import read_adapter, read_adapter_config
from phi4mm.errors import AdapterError, CheckpointError
from phi4mm.model.config import check_adapter_name
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.validate import shown

T = TypeVar("T")


class Run(Protocol):
    """Calls a function in the engine's thread, between two steps, and returns its result or raises its error."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


class Adapters:
    """The adapters of a running model; usable from any thread while rows run.

    Args:
        model: what the adapters are attached to.
        run: calls a function in the engine's thread between two steps.
        wait_unused: given an adapter's name, a context that is entered once no waiting or running row names the
            adapter. Requests that name it are refused from the call on until the context is left.
    """

    def __init__(
        self, model: Phi4MMModel, run: Run, wait_unused: Callable[[str], AbstractContextManager[object]]
    ) -> None:
        self._model = model
        self._run = run
        self._wait_unused = wait_unused

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters that are loaded, in the order in which they were."""
        return tuple(self._model.adapters)

    def load(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Load a LoRA adapter from a folder that peft or ``save_pretrained`` wrote, of any rank and alpha.

        Files are read and checked in the calling thread; the running rows do not wait for that. The weights are
        copied, so the folder may change or go afterwards.

        Args:
            name: what requests shall call it: letters, digits, ".", "_" and "-"; not "auto".
            folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            AdapterError: the name is taken or not allowed.
            CheckpointError: the folder or a file in it is missing or broken, or the adapter does not fit this model.
        """
        if not isinstance(name, str):
            raise AdapterError(f"{shown(name)} is not a name for an adapter; expected a string")
        check_adapter_name(name)
        if not isinstance(folder, str | os.PathLike) or isinstance(os.fspath(folder), bytes):
            raise AdapterError(f"folder is {shown(folder)}; expected the path of a folder that peft wrote")
        if not os.path.isdir(folder):
            state = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise CheckpointError(
                f"{os.fspath(folder)}: {state}; expected the folder of an adapter, with adapter_config.json and "
                "adapter_model.safetensors, as peft writes it"
            )
        config = read_adapter_config(Path(folder), name)
        parts = read_adapter(self._model, config, Path(folder))
        self._run(lambda: self._model.add_adapter(config, parts))

    def unload(self, name: str) -> None:
        """Unload an adapter and free its memory, once the rows that use it have ended; new ones are refused.

        Raises:
            AdapterError: there is no such adapter, or it is merged into the weights.
        """
        if not isinstance(name, str):
            raise AdapterError(f"the name of an adapter is {shown(name)}; expected a string")
        with self._wait_unused(name):
            self._run(lambda: self._model.remove_adapter(name))

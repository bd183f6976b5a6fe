"""Looks into a running engine, and holds it at a token of a row."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from phi4mm import Phi4MM


class Brake:
    """A logits processor that holds its row, and with it the engine, before its token number ``at``."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, token_ids: Sequence[int], logits: Any) -> Any:
        if len(token_ids) == self.at:
            self.reached.set()
            assert self.released.wait(20)
        return logits

    def __enter__(self) -> Brake:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()


def num_rows(model: Phi4MM) -> int:
    """Rows that the engine has."""
    return model._client.engine.call(lambda core: core.num_rows)


def held_bytes(model: Phi4MM) -> int:
    """Of features that wait for the engine, once nothing is being read and the step that is under way is done."""
    intake = model._client._intake
    while intake.num_pending:
        time.sleep(0.001)
    num_rows(model)
    return intake.held_bytes

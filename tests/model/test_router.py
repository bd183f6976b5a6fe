"""The router: a row's adapters and its audio projector, from its modality and what was asked for."""

from __future__ import annotations

import pytest

from phi4mm.errors import PromptError
from phi4mm.model.router import route
from phi4mm.types import Modality, Route

KNOWN = ("vision", "speech", "mine")


@pytest.mark.parametrize(
    ("modality", "adapter", "expected"),
    [
        (Modality.TEXT, "auto", Route()),
        (Modality.IMAGE, "auto", Route(("vision",))),
        (Modality.AUDIO, "auto", Route(("speech",), "speech")),
        (Modality.IMAGE_AUDIO, "auto", Route(("vision",), "vision")),
        (Modality.AUDIO, "vision", Route(("vision",), "speech")),
        (Modality.IMAGE_AUDIO, None, Route((), "vision")),
        (Modality.AUDIO, "auto+mine", Route(("speech", "mine"), "speech")),
        (Modality.TEXT, ("mine", "vision"), Route(("mine", "vision"))),
    ],
)
def test_routes(modality: Modality, adapter: str | tuple[str, ...] | None, expected: Route) -> None:
    assert route(modality, adapter, KNOWN) == expected


def test_adapters_that_cannot_be_taken() -> None:
    with pytest.raises(PromptError, match=r"'music'.*'vision', 'speech', 'mine'"):
        route(Modality.TEXT, "music", KNOWN)
    with pytest.raises(PromptError, match="names 'speech' twice"):
        route(Modality.AUDIO, "auto+speech", KNOWN)

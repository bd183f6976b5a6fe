"""Which adapters and which audio projector a row takes."""

from __future__ import annotations

from collections.abc import Collection

from phi4mm.errors import PromptError
from phi4mm.types import Modality, Route

_AUTO = "auto"
_MOST_NAMES = 64
_ROUTES = {
    Modality.TEXT: Route(),
    Modality.IMAGE: Route(("vision",)),
    Modality.AUDIO: Route(("speech",), audio_projector="speech"),
    Modality.IMAGE_AUDIO: Route(("vision",), audio_projector="vision"),
}


def route(modality: Modality, adapter: str | tuple[str, ...] | None, known: Collection[str]) -> Route:
    """The route of a row (Phi-4-multimodal technical report, section 2: mixture of LoRAs).

    Args:
        modality: what the row carries. The audio projector always follows it.
        adapter: ``"auto"`` for the modality's own adapter, ``None`` for none, an adapter's name, or several as a tuple
            or joined with "+", whose updates are summed; "auto" may be one of them.
        known: names of the adapters that are loaded.

    Raises:
        PromptError: an adapter is not loaded, or one, or "auto", is named twice.
    """
    automatic = _ROUTES[modality]
    given = () if adapter is None else tuple(adapter.split("+")) if isinstance(adapter, str) else adapter
    if len(given) > _MOST_NAMES:
        raise PromptError(f"adapter names {len(given)} adapters; expected at most {_MOST_NAMES}")
    names = tuple(name for one in given for name in (automatic.adapters if one == _AUTO else (one,)))
    for name in names:
        if name not in known:
            listed = ", ".join(repr(each) for each in known)
            raise PromptError(
                f"adapter {name!r:.80} is not in this model, which has {listed or 'none'}; load it with adapters.load, "
                f"or pass adapter=None (the bare decoder){' or one of these names' if known else ''}"
            )
    for name in (*given, *names):
        if max(given.count(name), names.count(name)) > 1:
            raise PromptError(f"adapter={adapter!r} names {name!r} twice; name each adapter once")
    return Route(names, automatic.audio_projector)

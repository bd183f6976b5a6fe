"""Which adapter and which audio projector a row takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from phi4mm.errors import PromptError


class Modality(StrEnum):
    """What a request carries beside its text."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    IMAGE_AUDIO = "image+audio"

    @classmethod
    def of(cls, *, has_images: bool, has_audios: bool) -> Modality:
        if has_images:
            return cls.IMAGE_AUDIO if has_audios else cls.IMAGE
        return cls.AUDIO if has_audios else cls.TEXT


@dataclass(frozen=True)
class Route:
    """Where a row goes: the LoRA adapter (``None``: the bare decoder) and the projector of its audio."""

    adapter: str | None = None
    audio_projector: str | None = None


_ROUTES = {
    Modality.TEXT: Route(),
    Modality.IMAGE: Route(adapter="vision"),
    Modality.AUDIO: Route(adapter="speech", audio_projector="speech"),
    Modality.IMAGE_AUDIO: Route(adapter="vision", audio_projector="vision"),
}


class Router:
    """Chooses a ``Route`` for each row (Phi-4-multimodal technical report, section 2: mixture of LoRAs).

    Args:
        adapters: names of the adapters that the model holds.
    """

    def __init__(self, adapters: Iterable[str]) -> None:
        self.adapters = tuple(adapters)

    def route(self, modality: Modality, adapter: str | None = "auto") -> Route:
        """The route of a row.

        Args:
            modality: what the row carries.
            adapter: ``"auto"`` for the modality's own adapter, ``None`` for none, or an adapter's name, which wins.
                The audio projector always follows the modality.

        Raises:
            PromptError: the adapter is not in this model.
        """
        automatic = _ROUTES[modality]
        chosen = automatic.adapter if adapter == "auto" else adapter
        if chosen is not None and chosen not in self.adapters:
            known = ", ".join(repr(name) for name in self.adapters) or "none"
            raise PromptError(
                f"adapter {chosen!r} is not in this model, which has {known}; "
                'pass adapter="auto", adapter=None or one of these names'
            )
        return Route(adapter=chosen, audio_projector=automatic.audio_projector)

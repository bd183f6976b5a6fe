"""Every size of the model, as frozen dataclasses. Nothing else in the package knows a size.

The defaults are those of microsoft/Phi-4-multimodal-instruct (config.json and the model card).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from phi4mm.errors import AdapterError

_LONG_FACTOR = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip
_MAX_PATCHES_PER_SIDE = 512


@dataclass(frozen=True)
class DecoderConfig:
    """The Phi-4-mini decoder.

    ``short_factor`` and ``long_factor`` hold one LongRoPE factor per rotated pair; both empty means plain RoPE.
    """

    vocab_size: int = 200064
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_layers: int = 32
    num_heads: int = 24
    num_kv_heads: int = 8
    norm_eps: float = 1e-5
    max_positions: int = 131072
    original_max_positions: int = 4096
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.75
    short_factor: tuple[float, ...] = (1.0,) * 48
    long_factor: tuple[float, ...] = _LONG_FACTOR
    sliding_window: int | None = 262144
    tie_embeddings: bool = True
    pad_token_id: int = 199999
    stop_token_ids: tuple[int, ...] = (199999, 200020)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_size(self) -> int:
        """How many of a head's dimensions are rotated."""
        return int(self.head_size * self.partial_rotary_factor)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}, and that of "
                f"num_kv_heads {self.num_kv_heads}"
            )
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} of a head of {self.head_size} rotates "
                f"{self.rotary_size} dimensions, expected an even number"
            )
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors and len(factors) != self.rotary_size // 2:
                raise ValueError(f"{name} has {len(factors)} values, expected {self.rotary_size // 2}")


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower (so400m-448), its crops and its projector.

    ``feature_layer`` counts as in transformers' ``hidden_states``: -2 is the output of the last layer but one.
    """

    image_token_id: int = 200010
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 27
    num_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    norm_eps: float = 1e-6
    feature_layer: int = -2
    max_crops: int = 36

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the vision tower's hidden_size {self.hidden_size} must be a multiple of its {self.num_heads} heads"
            )
        if not -self.num_layers - 1 <= self.feature_layer <= self.num_layers:
            raise ValueError(f"feature_layer is {self.feature_layer}, expected one of the {self.num_layers} layers")
        if not 1 <= self.patches_per_side <= _MAX_PATCHES_PER_SIDE:
            raise ValueError(
                f"image_size {self.image_size} and patch_size {self.patch_size} make {self.patches_per_side} patches a "
                f"side, expected 1 to {_MAX_PATCHES_PER_SIDE}"
            )

    @property
    def num_used_layers(self) -> int:
        """Layers up to ``feature_layer``; those after it are never computed."""
        return self.feature_layer + (self.num_layers + 1 if self.feature_layer < 0 else 0)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a crop."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        """Tokens along one side of a crop, after 2x2 averaging (an odd side is padded by one patch)."""
        return math.ceil(self.patches_per_side / 2)


@dataclass(frozen=True)
class SpeechConfig:
    """The Conformer tower: log-mel frames of ``num_mels`` to a token per ``time_reduction`` frames."""

    audio_token_id: int = 200011
    num_mels: int = 80
    hidden_size: int = 1024
    intermediate_size: int = 1536
    num_blocks: int = 24
    num_heads: int = 16
    subsampling_channels: int = 1024
    time_reduction: int = 8
    conv_kernel_size: int = 3
    bias_max_distance: int = 500
    bias_symmetric: bool = False
    window_tokens: int = 500

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"the speech tower's hidden_size {self.hidden_size} must be a multiple of its {self.num_heads} heads"
            )
        if self.time_reduction < 2 or self.time_reduction & (self.time_reduction - 1):
            raise ValueError(f"time_reduction {self.time_reduction} must be a power of two, 2 or more")

    @property
    def num_halvings(self) -> int:
        """How many stride-2 convolutions make up the time reduction."""
        return self.time_reduction.bit_length() - 1

    def num_tokens(self, num_frames: int) -> int:
        """Tokens for a clip of ``num_frames`` log-mel frames: ceil(frames / time_reduction)."""
        return -(-num_frames // self.time_reduction)

    @property
    def window_frames(self) -> int:
        """Frames of a window of ``window_tokens``, within which attention stays."""
        return self.window_tokens * self.time_reduction


@dataclass(frozen=True)
class FrontEndConfig:
    """How audio is prepared before its log-mel frames are computed.

    Attributes:
        max_seconds: the length of the longest clips in training; longer audio is to be cut.
        detect_narrow_band: audio at 16 kHz with nothing above 4 kHz was recorded at 8 kHz, and is resampled to that.
            The reference leaves it at 16 kHz.
        peak_level: audio is scaled so that its loudest sample has this magnitude (of 1); ``None`` leaves it as it is,
            as the reference does.
    """

    max_seconds: float = 30.0
    detect_narrow_band: bool = False
    peak_level: float | None = None

    def __post_init__(self) -> None:
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds {self.max_seconds} must be over 0")
        if self.peak_level is not None and not 0 < self.peak_level <= 1:
            raise ValueError(f"peak_level {self.peak_level} must be over 0 and at most 1, or null")


_ADAPTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class AdapterConfig:
    """One LoRA adapter on qkv_proj, o_proj, gate_up_proj and down_proj of every decoder layer.

    Raises:
        AdapterError: the name is not one that an adapter, and its folder in a checkpoint, may have.
    """

    name: str
    rank: int
    alpha: float
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_adapter_name(self.name)

    @property
    def scale(self) -> float:
        """What the low-rank update is multiplied with: alpha / rank."""
        return self.alpha / self.rank


def check_adapter_name(name: object) -> None:
    """Refuse what cannot name an adapter, nor the folder that it is saved in.

    Raises:
        AdapterError: it is no string, is longer than 100 characters or has characters that are not allowed.
    """
    if not isinstance(name, str) or not _ADAPTER_NAME.fullmatch(name) or name in (".", "..", "auto"):
        raise AdapterError(
            f"{name!r:.80} is not a name for an adapter; expected 1 to 100 letters (a to z), digits, '.', '_' or '-', "
            "and not '.', '..' or 'auto'"
        )


VISION_ADAPTER = AdapterConfig("vision", rank=256, alpha=512.0)
SPEECH_ADAPTER = AdapterConfig("speech", rank=320, alpha=640.0, dropout=0.01)


@dataclass(frozen=True)
class Phi4MMConfig:
    """The whole model. ``vision`` or ``speech`` is ``None`` where a checkpoint has no such tower."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    vision: VisionConfig | None = field(default_factory=VisionConfig)
    speech: SpeechConfig | None = field(default_factory=SpeechConfig)
    adapters: tuple[AdapterConfig, ...] = (VISION_ADAPTER, SPEECH_ADAPTER)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Phi4MMConfig:
        """The inverse of ``to_dict``; lists become tuples."""
        return cls(
            decoder=DecoderConfig(**_tuples(values["decoder"])),
            vision=VisionConfig(**_tuples(values["vision"])) if values.get("vision") else None,
            speech=SpeechConfig(**_tuples(values["speech"])) if values.get("speech") else None,
            adapters=tuple(AdapterConfig(**adapter) for adapter in values.get("adapters", ())),
            front_end=FrontEndConfig(**values.get("front_end", {})),
        )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

"""The ``config.json`` of our own layout: the configuration's dataclasses, the decoder under "backbone"."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from phi4mm.checkpoint.schema import (
    Alpha,
    Crops,
    Distance,
    Dropout,
    Epsilon,
    ExactSection,
    Factors,
    FeatureLayer,
    Fraction,
    Heads,
    ImageSide,
    KernelSize,
    Layers,
    Mels,
    PatchSide,
    Positions,
    Rank,
    Theta,
    TimeReduction,
    TokenId,
    Vocabulary,
    Width,
    Window,
    checked,
)
from phi4mm.model.config import FrontEndConfig, Phi4MMConfig, check_adapter_name

FORMAT_VERSION = 1


class _Backbone(ExactSection):
    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_layers: Layers
    num_heads: Heads
    num_kv_heads: Heads
    norm_eps: Epsilon
    max_positions: Positions
    original_max_positions: Positions
    rope_theta: Theta
    partial_rotary_factor: Fraction
    short_factor: Factors
    long_factor: Factors
    sliding_window: Window | None
    tie_embeddings: bool
    pad_token_id: TokenId
    stop_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=1024)]


class _Vision(ExactSection):
    image_token_id: TokenId
    hidden_size: Width
    intermediate_size: Width
    num_layers: Layers
    num_heads: Heads
    image_size: ImageSide
    patch_size: PatchSide
    num_channels: Literal[3]
    norm_eps: Epsilon
    feature_layer: FeatureLayer
    max_crops: Crops


class _Speech(ExactSection):
    audio_token_id: TokenId
    num_mels: Mels
    hidden_size: Width
    intermediate_size: Width
    num_blocks: Layers
    num_heads: Heads
    subsampling_channels: Width
    time_reduction: TimeReduction
    conv_kernel_size: KernelSize
    bias_max_distance: Distance
    bias_symmetric: bool
    window_tokens: Distance
    max_seconds: Annotated[float, Field(gt=0, le=86400)]
    detect_narrow_band: bool = FrontEndConfig.detect_narrow_band  # this and the next came later: older files lack them
    peak_level: float | None = FrontEndConfig.peak_level


class _Adapter(ExactSection):
    name: str
    rank: Rank
    alpha: Alpha
    dropout: Dropout = 0.0  # came later

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        check_adapter_name(name)
        return name


class _Own(ExactSection):
    format: Literal["phi4mm"]
    format_version: Literal[1]
    backbone: _Backbone
    vision: _Vision | None
    speech: _Speech | None
    adapters: Annotated[list[_Adapter], Field(max_length=1024)]

    @field_validator("adapters")
    @classmethod
    def _names_differ(cls, adapters: list[_Adapter]) -> list[_Adapter]:
        names = [adapter.name for adapter in adapters]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the name {twice[0]!r} occurs twice; expected a name for each")
        return adapters


def read_own_config(values: dict[str, Any], name: str) -> Phi4MMConfig:
    """The configuration that ``own_config`` wrote.

    Args:
        values: of the file.
        name: of the file.

    Raises:
        CheckpointError: a key is missing, unknown, of the wrong type or out of bounds.
        ValueError: sizes contradict each other.
    """
    own = checked(_Own, values, name, "save the checkpoint again with this version of phi4mm").model_dump()
    speech = own["speech"] or {}
    front_end = {field.name: speech.pop(field.name) for field in fields(FrontEndConfig) if field.name in speech}
    return Phi4MMConfig.from_dict({**own, "decoder": own["backbone"], "front_end": front_end})


def own_config(config: Phi4MMConfig) -> dict[str, Any]:
    """The ``config.json`` of our own layout: the decoder is its "backbone", the audio front end a part of "speech"."""
    values = config.to_dict()
    front_end = values.pop("front_end")
    if values["speech"] is not None:
        values["speech"] |= front_end
    return {"format": "phi4mm", "format_version": FORMAT_VERSION, "backbone": values.pop("decoder"), **values}

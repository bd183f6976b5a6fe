"""The ``config.json`` of each layout, as a ``Phi4MMConfig``. What our mathematics does not cover is refused."""

from __future__ import annotations

from pathlib import Path

from phi4mm.checkpoint.foreign_configs import (
    GenerationFile,
    ImageProcessor,
    MicrosoftFile,
    Phi3File,
    ProcessorFile,
    TransformersFile,
    decoder_config,
    microsoft_adapters,
    speech_config,
    vision_config,
)
from phi4mm.checkpoint.names import Layout
from phi4mm.checkpoint.own_config import own_config, read_own_config
from phi4mm.checkpoint.schema import S, check_token_ids, checked
from phi4mm.checkpoint.source import read_json
from phi4mm.errors import CheckpointError
from phi4mm.model.config import Phi4MMConfig, VisionConfig

__all__ = ["own_config", "read_config"]

_BELONGS = "use the configuration that belongs to the weights"


def read_config(folder: Path) -> tuple[Layout, Phi4MMConfig]:
    """The layout and the sizes of a checkpoint folder; adapters in PEFT folders are left to the caller.

    Raises:
        CheckpointError: ``config.json`` or a file beside it is absent or broken, is of another kind of model, has a key
            of the wrong type or out of bounds, lacks one, or asks for something that this package does not compute.
    """
    path = folder / "config.json"
    values = read_json(path)
    try:
        if "format" in values:
            layout: Layout = "phi4mm"
            config = read_own_config(values, str(path))
        else:
            match values.get("model_type"):
                case "phi4mm":
                    layout, config = (
                        "microsoft",
                        _multimodal(folder, checked(MicrosoftFile, values, str(path), _BELONGS)),
                    )
                case "phi4_multimodal":
                    file = checked(TransformersFile, values, str(path), _BELONGS)
                    layout, config = "transformers", _multimodal(folder, file)
                case "phi3":
                    text_only = checked(Phi3File, values, str(path), _BELONGS)
                    decoder = decoder_config(text_only, _beside(folder, "generation_config.json", GenerationFile))
                    layout, config = "phi3", Phi4MMConfig(decoder, vision=None, speech=None, adapters=())
                case kind:
                    found = "absent" if kind is None else f"{kind!r:.60}"
                    raise CheckpointError(
                        f'{path}: model_type is {found}; supported are "phi4mm" (Microsoft\'s files), '
                        '"phi4_multimodal" (transformers), "phi3" (text only) and this package\'s own format'
                    )
    except CheckpointError:
        raise
    except ValueError as error:  # sizes that contradict each other, from what does not know the file
        raise CheckpointError(f"{path}: {error}; {_BELONGS}") from error
    _check_ids(str(path), config)
    return layout, config


def _multimodal(folder: Path, file: MicrosoftFile | TransformersFile) -> Phi4MMConfig:
    return Phi4MMConfig(
        decoder=decoder_config(file, _beside(folder, "generation_config.json", GenerationFile)),
        vision=vision_config(file, _max_crops(folder)),
        speech=speech_config(file),
        adapters=microsoft_adapters(file) if isinstance(file, MicrosoftFile) else (),
    )


def _beside(folder: Path, name: str, schema: type[S]) -> S:
    """A file beside config.json, which may be absent."""
    path = folder / name
    return checked(schema, read_json(path) if path.exists() else {}, str(path))


def _max_crops(folder: Path) -> int:
    """``dynamic_hd`` of the image processor's settings."""
    new = _beside(folder, "processor_config.json", ProcessorFile).image_processor.dynamic_hd
    old = _beside(folder, "preprocessor_config.json", ImageProcessor).dynamic_hd
    return new or old or VisionConfig.max_crops


def _check_ids(name: str, config: Phi4MMConfig) -> None:
    """Refuse token ids that are no rows of the embedding, or stand for two things."""
    decoder, vision, speech = config.decoder, config.vision, config.speech
    ids = [("pad_token_id", decoder.pad_token_id), *(("a stop token's id", stop) for stop in decoder.stop_token_ids)]
    ids += [("image_token_id", vision.image_token_id)] if vision else []
    ids += [("audio_token_id", speech.audio_token_id)] if speech else []
    check_token_ids(name, ids, decoder.vocab_size)
    if vision and speech and vision.image_token_id == speech.audio_token_id:
        raise CheckpointError(f"{name}: image_token_id and audio_token_id are both {vision.image_token_id}; {_BELONGS}")

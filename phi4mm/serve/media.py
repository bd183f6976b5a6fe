"""Media of a request: from base64 or a remote address to pictures and samples, within the limits."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from phi4mm.inputs.audio import load_audio
from phi4mm.inputs.audio_file import decoded_blocks
from phi4mm.inputs.image import load_image, tile_grid
from phi4mm.model.config import VisionConfig
from phi4mm.serve.errors import ApiError, bad_request
from phi4mm.serve.limits import Limits

# Some of Pillow's others start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Samples = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Medium:
    """A medium as it came.

    Attributes:
        kind: "image" or "audio".
        param: where it stands in the request.
        text: base64, or a URL of any scheme.
        is_url: whether it came as a URL, which may be of the scheme ``data``.
        content: the file, once it is fetched.
    """

    kind: str
    param: str
    text: str = field(repr=False)
    is_url: bool = True
    content: bytes | None = field(default=None, repr=False)

    @property
    def is_remote(self) -> bool:
        """Whether it must be fetched; the fetcher finds which schemes may not be."""
        return self.content is None and self.is_url and self.text[:5].lower() != "data:"


class MediaReader:
    """Decodes the media of one request, in a thread.

    Args:
        limits: of pixels, crops and seconds.
        vision: the model's tower; ``None`` where it has none.
    """

    def __init__(self, limits: Limits, vision: VisionConfig | None) -> None:
        self._limits = limits
        self._vision = vision
        self._num_crops = 0
        self.audio_seconds = 0.0

    def image(self, medium: Medium) -> Image.Image:
        """A picture, RGB.

        Raises:
            ApiError: it is no picture, or too large.
        """
        content = content_of(medium)
        self._check_size(content, medium.param)
        return load_image(content, name=medium.param)

    def audio(self, medium: Medium) -> Samples:
        """Samples [n] and their rate.

        Raises:
            ApiError: all audio of the request together is too long.
            AudioError: it is no audio.
        """
        waveform = load_audio(self._within_limit(content_of(medium), medium.param), name=medium.param)
        return waveform.samples, waveform.sampling_rate

    def _check_size(self, content: bytes, param: str) -> None:
        """Before anything is decoded."""
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                width, height = image.size
        except Exception as error:  # on a damaged file Pillow's decoders raise errors of any kind
            raise bad_request(
                f"{param}: is not a picture that can be read, expected {', '.join(_FORMATS).lower()}", param
            ) from error
        if width * height > self._limits.max_pixels:
            raise bad_request(
                f"{param}: {width}x{height} pixels; this server takes at most {self._limits.max_pixels} in all", param
            )
        if self._vision is not None and width * height:
            rows, columns = tile_grid(width, height, self._vision.image_size, self._vision.max_crops)
            self._num_crops += rows * columns + 1
            if self._num_crops > self._limits.max_crops:
                raise bad_request(f"{param}: the images make more than {self._limits.max_crops} crops", param)

    def _within_limit(self, content: bytes, param: str) -> Iterator[Samples]:
        if not content:
            raise bad_request(f"{param}: the audio is empty", param)
        for samples, rate in decoded_blocks(content, param):
            self.audio_seconds += len(samples) / rate
            if self.audio_seconds > self._limits.max_audio_seconds:
                raise ApiError(
                    413, f"{param}: the audio is longer than {self._limits.max_audio_seconds:g} s in all", param=param
                )
            yield samples, rate


def content_of(medium: Medium) -> bytes:
    """The bytes of a file.

    Raises:
        ApiError: what came is not base64.
    """
    if medium.content is not None:
        return medium.content
    text = medium.text
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise bad_request(f"{medium.param}: expected data:TYPE;base64,...", medium.param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{medium.param}: is not base64 ({error})", medium.param) from error

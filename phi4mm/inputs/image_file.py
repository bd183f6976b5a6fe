"""Picture files of common formats, and any mode of picture -> RGB as a viewer shows it. Decoded by Pillow."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from phi4mm.errors import ImageError
from phi4mm.inputs.source import is_url

# Pillow's formats that need only the file itself: no program (EPS starts Ghostscript) and no other file. HEIF is there
# once pillow-heif is registered.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "ICO", "PPM", "TGA"),
    *("QOI", "PCX", "PSD", "SGI"),
)
MAX_BYTES = 768 << 20  # that a picture may take while it is decoded; its pixels as RGB, 4 bytes each, come on top
# Bytes per pixel that decoders hold, where it is more than the picture itself has (measured: 9000x9000 pixels).
DECODER_BYTES = {"JPEG2000": 16, "WEBP": 16, "AVIF": 12, "HEIF": 12}
SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes per pixel; all else 4
BAND_PIXELS = 1 << 20  # pixels converted at once
WHITE = (255, 255, 255)

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


@contextmanager
def opened(source: Any, name: str) -> Iterator[Image.Image]:
    """The picture of a path, of bytes or of a binary file, not yet decoded.

    Raises:
        ImageError: it is a URL, no file, no bytes, or empty.
        Exception: what ``open`` and Pillow raise.
    """
    if is_url(source):
        raise ImageError(f"{name}: is a URL, expected a file; download it first and pass its path")
    with ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            kind = os.stat(source).st_mode  # a pipe would be waited for, a device may have no end
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise ImageError(f"{name}: is a pipe or a device, expected a picture file; pass its contents as bytes")
            file: Any = stack.enter_context(open(source, "rb"))
            empty = not os.fstat(file.fileno()).st_size
        else:
            content = source.read() if hasattr(source, "read") else source
            if not isinstance(content, (bytes, bytearray, memoryview)):
                raise ImageError(
                    f"{name}: gives {type(content).__name__}, expected a path, bytes, a file open in binary mode or a "
                    "PIL.Image.Image (PIL.Image.fromarray makes one of an array)"
                )
            empty = not len(content)
            file = io.BytesIO(content)
        if empty:
            raise ImageError(f"{name}: is empty (0 bytes), expected a picture file; write or download it again")
        Image.init()
        yield stack.enter_context(Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN]))


def check_size(image: Image.Image, name: str) -> None:
    """Refuse, before it is decoded, a picture without pixels or one that takes too much memory.

    Pillow itself refuses only twice its limit of pixels, and knows none of bytes.
    """
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if not pixels:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels, expected at least 1x1; pass another picture")
    if limit is not None and pixels > limit:
        raise ImageError(
            f"{name}: {image.width}x{image.height} pixels, expected at most {limit} in all; scale it down first, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    needed = pixels * max(SMALL_MODES.get(image.mode, 4), DECODER_BYTES.get(image.format or "", 0))
    if needed > MAX_BYTES:
        raise ImageError(
            f"{name}: {image.width}x{image.height} pixels of {image.format or image.mode} take {needed >> 20} MiB to "
            f"decode, expected at most {MAX_BYTES >> 20}; scale it down first"
        )


def as_shown(image: Image.Image) -> Image.Image:
    """Upright, opaque, 8-bit RGB; the picture given is left as it is."""
    image.load()
    wide = _range(image) if image.mode == "F" or image.mode.startswith("I") else None
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if wide is None and not image.has_transparency_data and image.mode != "LAB":
        return image.convert("RGB")
    shown = Image.new("RGB", image.size)
    rows = max(BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):  # in bands, as some conversions take many times the picture's memory
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        shown.paste(_opaque(band if wide is None else _eight_bits(band, *wide)), (0, top))
    return shown


def _opaque(image: Image.Image) -> Image.Image:
    """A mode of 8 bits to RGB; transparency is laid on white."""
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    if image.mode == "LAB":
        shown = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert shown is not None  # it returns None only when it works in place
        return shown
    return image.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of a wide grey that are black and white.

    A file's are those of its number of bits. Modes without a range of their own (I, F) have the smallest usual one that
    holds the brightest pixel: 1 (F only), 255, 65535, or that pixel.
    """
    if image.mode not in ("I", "F") or image.format == "PPM":
        full = 65535.0
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            full = 2.0 ** image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
            if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # which says that zero is white
                return full, 0.0
        return 0.0, full
    rows = max(BAND_PIXELS // image.width, 1)
    tops = range(0, image.height, rows)
    bands = (image.crop((0, top, image.width, min(top + rows, image.height))) for top in tops)
    peak = max(float(_values(band).max()) for band in bands)
    usual = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}[image.mode]
    return 0.0, next((value for value in usual if peak <= value), peak)


def _eight_bits(image: Image.Image, black: float, white: float) -> Image.Image:
    """A wide grey to mode L, or LA where one of its values is transparent."""
    values = _values(image)
    scaled = ((values - black) / (white - black) * 255).round().clip(0, 255).astype(np.uint8)
    grey = Image.fromarray(scaled)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _values(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)

"""Pictures of any mode -> RGB as a viewer shows them -> square crops and their patch masks.

Files are decoded and resized by Pillow.
"""

from __future__ import annotations

import io
import math
import os
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from phi4mm.errors import ImageError
from phi4mm.inputs.source import is_url, source_name, unwrapped
from phi4mm.model.config import VisionConfig
from phi4mm.model.crops import Grid, cut, num_image_tokens, patch_masks
from phi4mm.model.media import PreparedImage

MIN_SIDE = 10  # pixels: a side shrunk below this makes the picture unusable, as in Microsoft's processor
PIXEL_CENTRE = 127.5  # mean and standard deviation 0.5 of values in [0, 1]: 0..255 becomes -1..1
WHITE = (255, 255, 255)

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


def load_image(source: ImageSource, *, name: str | None = None) -> Image.Image:
    """Decodes a picture to mode RGB, as a viewer shows it.

    The EXIF orientation is applied, transparency is laid on white, 16-bit and float greys are scaled to 8 bits, and of
    several frames the first is taken.

    Args:
        source: a path, the bytes of a file, an open binary file or a ``PIL.Image.Image``. Never a URL.
        name: what errors call the input; by default the file's path, or "image".

    Raises:
        ImageError: there is no such file, it is not a picture, it is damaged or truncated, it has no pixels, or more
            than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    source = unwrapped(source)
    name = name or source_name(source, "image")
    try:
        if isinstance(source, Image.Image):
            return _as_shown(source, name)
        with Image.open(_stream(source, name)) as image:
            _check_pixels(image, name)
            return _as_shown(image, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: there is no such file ({error.filename}); check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a folder, expected a picture file; pass a file in it") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: is not a picture that can be read, expected png, jpeg, webp, gif, bmp or tiff; convert it or "
            "download it again"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: has too many pixels ({error}); scale it down first") from error
    except Exception as error:  # on a damaged file Pillow's decoders raise errors of any kind
        raise ImageError(
            f"{name}: cannot be read ({error or type(error).__name__}), expected a whole picture file; copy or "
            "download it again"
        ) from error


def prepare_image(image: Image.Image, config: VisionConfig, *, name: str = "image") -> PreparedImage:
    """Cuts a picture into tiles and makes its global view.

    As microsoft/Phi-4-multimodal-instruct's processing_phi4mm.py and transformers' Phi4MultimodalImageProcessor do.

    The picture keeps its aspect ratio, is resized (bilinear, antialiased) to fill a grid of square crops, and padded
    with white to the right or at the bottom. The global view is the padded picture, shrunk (bicubic, not antialiased)
    to one crop.

    Args:
        image: of mode RGB; see ``load_image``.
        config: gives the side of a crop and of a patch, and the most crops allowed.
        name: what errors call the picture.

    Raises:
        ImageError: the picture is not RGB, is empty, or is so elongated that its short side would be under 10 pixels.
    """
    if image.mode != "RGB" or not image.width * image.height:
        raise ImageError(
            f"{name}: mode {image.mode}, {image.width}x{image.height} pixels, expected RGB; pass it to load_image first"
        )
    side = config.image_size
    rows, columns = tile_grid(image.width, image.height, side, config.max_crops)
    width, height = _fit(image.width, image.height, columns * side, rows * side)
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: {image.width}x{image.height} pixels would be resized to {width}x{height}, expected at least "
            f"{MIN_SIDE} a side; crop the picture to a less extreme aspect ratio"
        )
    canvas = Image.new("RGB", (columns * side, rows * side), WHITE)
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / PIXEL_CENTRE - 1
    overview = torch.nn.functional.interpolate(
        pixels[None], size=(side, side), mode="bicubic", align_corners=False, antialias=False
    )
    tiles = cut(pixels.permute(1, 2, 0), (rows, columns)).permute(0, 3, 1, 2)
    masks = patch_masks((rows, columns), height, width, config)
    num_tokens = num_image_tokens(masks, (rows, columns))
    return PreparedImage(torch.cat((overview, tiles)), masks, (rows, columns), num_tokens)


def tile_grid(width: int, height: int, side: int, max_crops: int) -> Grid:
    """Tile rows and columns of a picture: enough to hold it, or else the grid of the closest aspect ratio.

    Of several grids that are equally close, it is the largest whose area is under twice that of the picture.
    """
    columns, rows = math.ceil(width / side), math.ceil(height / side)
    if rows * columns <= max_crops:
        return rows, columns
    best, best_distance = (1, 1), math.inf
    for rows, columns in _grids(max_crops):
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * side * side * rows * columns
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (rows, columns), distance
    return best


@lru_cache(maxsize=8)
def _grids(max_crops: int) -> tuple[Grid, ...]:
    """Every grid (rows, columns) of at most ``max_crops`` tiles, the smallest first."""
    grids = [(rows, columns) for rows in range(1, max_crops + 1) for columns in range(1, max_crops // rows + 1)]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))


def _fit(width: int, height: int, target_width: int, target_height: int) -> tuple[int, int]:
    """The size that fills one side of the target and keeps the aspect ratio, rounded down."""
    by_width, by_height = target_width / width, target_height / height
    if by_width < by_height:
        return target_width, int(height * by_width)
    return int(width * by_height), target_height


def _stream(source: Any, name: str) -> Any:
    """What Pillow opens: the path, or the bytes as a file."""
    if is_url(source):
        raise ImageError(f"{name}: is a URL, expected a file; download it first and pass its path")
    stream: Any = source
    if isinstance(source, (str, os.PathLike)):
        empty = not os.stat(source).st_size and os.path.isfile(source)
    else:
        content = source.read() if hasattr(source, "read") else source
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ImageError(
                f"{name}: gives {type(content).__name__}, expected a path, bytes, a file open in binary mode or a "
                "PIL.Image.Image (PIL.Image.fromarray makes one of an array)"
            )
        empty = not len(content)
        stream = io.BytesIO(content)
    if empty:
        raise ImageError(f"{name}: is empty (0 bytes), expected a picture file; write or download it again")
    return stream


def _check_pixels(image: Image.Image, name: str) -> None:
    """Before decoding: Pillow itself refuses only twice its limit, and warns from there down."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name}: {image.width}x{image.height} pixels, expected at most {limit} in all; scale it down first, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _as_shown(image: Image.Image, name: str) -> Image.Image:
    """Upright, opaque, 8-bit RGB."""
    if not image.width * image.height:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels, expected at least 1x1; pass another picture")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Wide greys to mode L. A 16-bit mode is scaled from 65535; the modes without a range of their own (I, F) from
    the smallest usual one that holds the brightest pixel: 1 (F only), 255, 65535, or that pixel."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    peak = float(values.max())
    ranges = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
    full = next((value for value in ranges if peak <= value), peak)
    return Image.fromarray((values / full * 255).round().clip(0, 255).astype(np.uint8))

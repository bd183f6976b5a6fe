"""Pictures of any mode -> RGB as a viewer shows them -> square crops and their patch masks.

Files are decoded and resized by Pillow.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from phi4mm.errors import ImageError
from phi4mm.inputs.image_file import ImageSource, as_shown, check_size, opened
from phi4mm.inputs.source import source_name, unwrapped
from phi4mm.model.config import VisionConfig
from phi4mm.model.crops import Grid, cut, num_image_tokens, patch_masks
from phi4mm.model.media import PreparedImage

MIN_SIDE = 10  # pixels: a side shrunk below this makes the picture unusable, as in Microsoft's processor
PIXEL_CENTRE = 127.5  # mean and standard deviation 0.5 of values in [0, 1]: 0..255 becomes -1..1
WHITE = (255, 255, 255)


def load_image(source: ImageSource, *, name: str | None = None) -> Image.Image:
    """Decodes a picture to mode RGB, as a viewer shows it.

    The EXIF orientation is applied, transparency is laid on white, 16-bit and float greys are scaled to 8 bits, and of
    several frames the first is taken.

    Args:
        source: a path, the bytes of a file, an open binary file or a ``PIL.Image.Image``. Never a URL.
        name: what errors call the input; by default the file's path, or "image".

    Raises:
        ImageError: there is no such file, it is not a picture of one of ``FORMATS``, it is damaged or truncated, it has
            no pixels, or more than ``PIL.Image.MAX_IMAGE_PIXELS``, or decoding it takes more than ``MAX_BYTES``.
    """
    source = unwrapped(source)
    name = name or source_name(source, "image")
    try:
        if isinstance(source, Image.Image):
            check_size(source, name)
            return as_shown(source)
        with opened(source, name) as image:
            check_size(image, name)
            return as_shown(image)
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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{name}: cannot be read ({reason:.200}), expected a whole picture file; copy or download it again"
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

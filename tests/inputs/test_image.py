"""Pictures to RGB, crops and masks."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from phi4mm.errors import ImageError
from phi4mm.inputs.image import load_image, prepare_image
from phi4mm.model.config import VisionConfig
from phi4mm.model.vision import Vision

SMALL = VisionConfig(image_size=56, patch_size=14, max_crops=6)
ODD = VisionConfig(image_size=42, patch_size=14, max_crops=7)  # 3 patches a side

WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def corners(width: int = 8, height: int = 6) -> Image.Image:
    """Red, green and blue in three corners of a white picture."""
    image = Image.new("RGB", (width, height), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((width - 1, 0), GREEN)
    image.putpixel((0, height - 1), BLUE)
    return image


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_format(tmp_path: Path, format: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(Image.new("RGB", (20, 10), (200, 40, 90)), format))
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    np.testing.assert_allclose(np.asarray(image)[5, 10], (200, 40, 90), atol=6)


def test_sources_agree(tmp_path: Path) -> None:
    content = encode(corners())
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), content, file, io.BytesIO(content), corners()]
        images = [load_image(source).tobytes() for source in sources]
    assert images == [corners().tobytes()] * len(sources)


def test_source_image_is_left_alone() -> None:
    source = corners()
    load_image(source).putpixel((0, 0), BLACK)
    assert source.getpixel((0, 0)) == RED


# How a camera turns the upright picture before it stores it, by the orientation that it then notes down.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    stored = corners().transpose(STORED[orientation]) if orientation in STORED else corners()
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert load_image(encode(stored, exif=exif)).tobytes() == corners().tobytes()


def test_exif_orientation_of_wide_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encode(Image.new("I;16", (8, 6)), exif=exif)).size == (6, 8)


def grey16(dtype: str) -> Image.Image:
    return Image.fromarray(np.full((2, 2), 0x8000, dtype))


PALETTE = Image.new("P", (2, 2), 1)
PALETTE.putpalette([*RED, *GREEN])
MODES = {
    "1": (Image.new("1", (2, 2), 1), WHITE),
    "L": (Image.new("L", (2, 2), 77), (77, 77, 77)),
    "P": (PALETTE, GREEN),
    "PA": (PALETTE.convert("PA"), GREEN),
    "LA opaque": (Image.new("LA", (2, 2), (77, 255)), (77, 77, 77)),
    "LA clear": (Image.new("LA", (2, 2), (77, 0)), WHITE),
    "La clear": (Image.new("La", (2, 2), (0, 0)), WHITE),
    "RGBA half": (Image.new("RGBA", (2, 2), (0, 0, 0, 128)), (127, 127, 127)),
    "RGBA clear": (Image.new("RGBA", (2, 2), (9, 9, 9, 0)), WHITE),
    "RGBa clear": (Image.new("RGBa", (2, 2), (0, 0, 0, 0)), WHITE),
    "RGBX": (Image.new("RGBX", (2, 2), (1, 2, 3, 0)), (1, 2, 3)),
    "CMYK": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
    "YCbCr": (Image.new("RGB", (2, 2), RED).convert("YCbCr"), (254, 0, 0)),
    "HSV": (Image.new("HSV", (2, 2), (0, 255, 255)), RED),
    "LAB": (Image.new("LAB", (2, 2), (255, 128, 128)), (254, 255, 254)),
    "I;16": (grey16("<u2"), (128, 128, 128)),
    "I;16B": (grey16(">u2"), (128, 128, 128)),
    "I of 8 bits": (Image.new("I", (2, 2), 200), (200, 200, 200)),
    "I of 16 bits": (Image.new("I", (2, 2), 0x8000), (128, 128, 128)),
    "I negative": (Image.new("I", (2, 2), -5), BLACK),
    "F to 1": (Image.new("F", (2, 2), 0.5), (128, 128, 128)),
    "F to 255": (Image.new("F", (2, 2), 200.0), (200, 200, 200)),
    "F of NaN": (Image.new("F", (2, 2), float("nan")), BLACK),
}


@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str) -> None:
    source, expected = MODES[mode]
    image = load_image(source)
    assert (image.mode, image.size) == ("RGB", (2, 2))
    np.testing.assert_allclose(np.asarray(image), np.broadcast_to(expected, (2, 2, 3)), atol=1)


def tiff(samples: np.ndarray, bits: int, *, white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF of one strip; 12-bit samples are packed two in three bytes."""
    strip = samples.astype("<u2").tobytes()
    if bits == 12:
        pairs = samples.reshape(-1, 2).astype(int)
        strip = b"".join(int(first << 12 | second).to_bytes(3, "big") for first, second in pairs)
    height, width = samples.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(strip)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


RAMP = np.linspace(0, 1, 256)[None]
WIDE = {
    "16-bit png": encode(Image.fromarray((RAMP * 65535).astype(np.uint16))),
    "16-bit tiff": tiff(RAMP * 65535, 16),
    "16-bit tiff, zero is white": tiff((1 - RAMP) * 65535, 16, white_is_zero=True),
    "12-bit tiff": tiff(RAMP * 4095, 12),
    "16-bit pgm": b"P5 256 1 65535\n" + (RAMP * 65535).astype(">u2").tobytes(),
    "10-bit pgm": b"P5 256 1 1023\n" + (RAMP * 1023).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", WIDE)
def test_wide_greys_are_scaled_from_the_range_of_their_file(kind: str) -> None:
    np.testing.assert_allclose(np.asarray(load_image(WIDE[kind]))[0, :, 0], np.arange(256), atol=1)


def test_a_dark_16_bit_file_stays_dark() -> None:
    for content in (tiff(RAMP * 200, 16), b"P5 256 1 65535\n" + (RAMP * 200).astype(">u2").tobytes()):
        assert np.asarray(load_image(content)).max() <= 1


def test_16_bit_png_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    image = load_image(encode(Image.fromarray(ramp)))
    np.testing.assert_allclose(np.asarray(image)[0, :, 0], np.arange(256), atol=1)


def test_png_with_a_transparent_colour() -> None:
    assert load_image(encode(Image.new("RGB", (2, 2), RED), transparency=RED)).getpixel((0, 0)) == WHITE
    assert load_image(encode(PALETTE, transparency=1)).getpixel((0, 0)) == WHITE


def test_16_bit_png_with_a_transparent_grey() -> None:
    content = png_of_size(2, 1, depth=16, colour=0, rows=b"\0" + struct.pack(">HH", 1000, 30000), transparent=1000)
    assert [load_image(content).getpixel((x, 0))[0] for x in (0, 1)] == [255, round(30000 / 257)]  # type: ignore[index]


def test_palette_with_several_degrees_of_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    shown = load_image(encode(image, transparency=bytes([255, 0, 127])))
    np.testing.assert_allclose(np.asarray(shown)[0], [RED, WHITE, (128, 128, 255)], atol=1)


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(np.asarray(load_image(encode(image, "JPEG")))[8, 8], RED, atol=8)


def test_a_tall_picture_with_transparency_is_converted_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 5, 4), dtype=np.uint8))
    whole = load_image(image)
    monkeypatch.setattr("phi4mm.inputs.image_file.BAND_PIXELS", 12)
    assert load_image(image).tobytes() == whole.tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_wide_greys_take_little_memory_beside_the_picture(mode: str) -> None:
    source = Image.new(mode, (3000, 3000))
    tracemalloc.start()
    load_image(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # of numpy; an array of float64 for the whole picture would be 72e6


def test_first_frame_of_an_animation() -> None:
    red, green = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)
    assert load_image(encode(red, "GIF", save_all=True, append_images=[green])).getpixel((0, 0)) == RED


def png_of_size(
    width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"", transparent: int | None = None
) -> bytes:
    """A PNG that claims a size and by default holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    chunks += b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
PNG, JPEG, WEBP, GIF, TIFF = (encode(NOISE, format) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"))
BAD_FILES = {
    "empty": (b"", "empty"),
    "html": (b"<html><body>404 Not Found</body></html>", "not a picture"),
    "zeros": (bytes(5000), "not a picture"),
    "png signature alone": (PNG[:8], "(cannot be read|not a picture)"),
    "png cut in its header": (PNG[:20], "(cannot be read|not a picture)"),
    "png cut in half": (PNG[: len(PNG) // 2], "cannot be read"),
    "png with a hole": (PNG[:1000] + bytes(100) + PNG[1100:], "cannot be read"),
    "jpeg cut in its header": (JPEG[:30], "(cannot be read|not a picture)"),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], "truncated"),
    "webp cut in half": (WEBP[: len(WEBP) // 2], "(cannot be read|not a picture)"),
    "gif cut in half": (GIF[: len(GIF) // 2], "cannot be read"),
    "tiff cut in half": (TIFF[: len(TIFF) // 2], "(cannot be read|not a picture)"),
    "png without pixels": (png_of_size(0, 5), "(cannot be read|not a picture|0x5)"),
    "png that claims more than it holds": (png_of_size(50, 50), "cannot be read"),
    "picture bomb": (png_of_size(60000, 60000), "too many pixels"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n", "not a picture"),
    "pdf": (b"%PDF-1.4\n", "not a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"^{re.escape(str(path))}: .*{message}") as from_path:
        load_image(path)
    assert "\n" not in str(from_path.value)
    with pytest.raises(ImageError, match=rf"^image 2: .*{message}"):
        load_image(content, name="image 2")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_between_pillows_warning_and_its_error() -> None:
    with pytest.raises(ImageError, match="10000x10000 pixels, expected at most"):
        load_image(png_of_size(10000, 10000))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bomb_warning_as_error() -> None:
    with pytest.raises(ImageError, match="too many pixels"):
        load_image(png_of_size(10000, 10000))


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    for program in ("gs", "gswin32c", "xv", "display"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ImageError, match="not a picture"):
        load_image(BAD_FILES["eps"][0])
    assert not started.exists()


def test_a_picture_that_takes_too_much_memory_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi4mm.inputs.image_file.MAX_BYTES", 1 << 20)
    content = {mode: encode(Image.new(mode, (700, 700)), "TIFF") for mode in ("L", "I;16", "I", "F", "RGB", "CMYK")}
    for mode in ("L", "I;16"):
        assert load_image(content[mode]).size == (700, 700)
    for mode in ("I", "F", "RGB", "CMYK"):
        for source in (content[mode], Image.open(io.BytesIO(content[mode])), Image.new(mode, (700, 700))):
            with pytest.raises(ImageError, match="take 1 MiB to decode, expected at most 1; scale it down"):
                load_image(source)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="pipe or a device"):
            load_image(path)


BAD_SOURCES = {
    "missing": ("/no/such/picture.png", "no such file"),
    "folder": (Path(__file__).parent, "folder"),
    "url": ("http://example.org/a.png", "URL"),
    "text file": (io.StringIO("a"), "str, expected"),
    "number": (5, "int, expected"),
    "nothing": (None, "NoneType, expected"),
    "array": (np.zeros((4, 4, 3), np.uint8), "ndarray, expected.*fromarray"),
    "no pixels": (Image.new("RGB", (0, 5)), "0x5"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_source(case: str) -> None:
    source, message = BAD_SOURCES[case]
    with pytest.raises(ImageError, match=rf"^image 2: .*{message}") as caught:
        load_image(source, name="image 2")
    assert "\n" not in str(caught.value)


def test_closed_image() -> None:
    image = Image.open(io.BytesIO(PNG))
    image.close()
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(image)


@pytest.mark.parametrize("size", [(1, 10000), (10000, 1), (1, 100)])
def test_extreme_aspect_ratio(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=rf"^image 1: {size[0]}x{size[1]} pixels would be resized to"):
        prepare_image(Image.new("RGB", size), SMALL, name="image 1")


@pytest.mark.parametrize("image", [Image.new("L", (5, 5)), Image.new("RGB", (0, 5))])
def test_prepare_wants_rgb(image: Image.Image) -> None:
    with pytest.raises(ImageError, match="expected RGB"):
        prepare_image(image, SMALL)


def test_one_pixel_fills_a_crop() -> None:
    prepared = prepare_image(Image.new("RGB", (1, 1), RED), SMALL)
    expected = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(2, 3, 56, 56)
    torch.testing.assert_close(prepared.crops, expected)
    assert prepared.masks.all()
    assert prepared.grid == (1, 1)


def test_tiles_go_row_by_row() -> None:
    image = Image.new("RGB", (112, 112))
    for index, colour in enumerate([WHITE, RED, GREEN, BLUE]):
        image.paste(colour, (index % 2 * 56, index // 2 * 56, index % 2 * 56 + 56, index // 2 * 56 + 56))
    prepared = prepare_image(image, SMALL)
    means = prepared.crops[1:].mean(dim=(2, 3))
    expected = torch.tensor([WHITE, RED, GREEN, BLUE]) / 127.5 - 1
    torch.testing.assert_close(means, expected)


def test_padding_is_white_and_masked() -> None:
    prepared = prepare_image(Image.new("RGB", (56, 20)), SMALL)
    assert prepared.crops[1, :, :20].eq(-1).all()
    assert prepared.crops[1, :, 20:].eq(1).all()
    assert prepared.masks[0].all()
    assert prepared.masks[1].tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]
    # Global view 2 x 2, its 2 row ends and 1 separator; 1 x 2 useful tokens and 1 row end.
    assert prepared.num_tokens == 4 + 2 + 1 + 2 + 1


def test_equally_close_grids() -> None:
    """Of 1x1 and 2x2 the larger is taken only when the picture is large enough for it."""
    assert prepare_image(Image.new("RGB", (170, 170)), SMALL).grid == (2, 2)
    config = VisionConfig(image_size=56, patch_size=14, max_crops=4)
    assert prepare_image(Image.new("RGB", (57, 290)), config).grid == (4, 1)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), config=st.sampled_from([SMALL, ODD]))
def test_token_count_follows_from_the_masks(width: int, height: int, config: VisionConfig) -> None:
    try:
        prepared = prepare_image(Image.new("RGB", (width, height)), config)
    except ImageError:
        assert max(width / height, height / width) > config.image_size / 10
        return
    rows, columns = prepared.grid
    side, patches, base = config.image_size, config.patches_per_side, config.tokens_per_side
    assert rows * columns <= config.max_crops
    assert prepared.crops.shape == (1 + rows * columns, 3, side, side)
    assert prepared.masks.shape == (1 + rows * columns, patches, patches)
    assert prepared.masks[:, 0, 0].all()  # no tile is padding alone
    useful = [
        sum(int(prepared.masks[1 + row * columns + column, y].view(-1)[::2].sum()) for column in range(columns))
        for row in range(rows)
        for y in range(0, patches, 2)
    ]
    assert prepared.num_tokens == base * (base + 1) + 1 + sum(useful) + sum(count > 0 for count in useful)


@pytest.fixture(scope="module")
def tower() -> Callable[[VisionConfig], Vision]:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1}
    towers = {config: Vision(replace(config, **sizes), 16).eval() for config in (SMALL, ODD)}
    return towers.__getitem__


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), config=st.sampled_from([SMALL, ODD]))
@torch.no_grad()
def test_the_tower_returns_as_many_embeddings_as_tokens_are_counted(
    tower: Callable[[VisionConfig], Vision], width: int, height: int, config: VisionConfig
) -> None:
    assume(max(width / height, height / width) < 5)
    prepared = prepare_image(Image.new("RGB", (width, height)), config)
    [embeddings] = tower(config)(prepared.crops, prepared.masks, (prepared.grid,))
    assert embeddings.shape == (prepared.num_tokens, 16)

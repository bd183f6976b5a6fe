"""Mutated media files are read, or refused with an error of ours, within bounds of time and memory.

It tries 400 files of each kind, or with ``--fuzz N`` more; case number K is the same in every run.
"""

from __future__ import annotations

import io
import pickle
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import IO

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.media import picture, speech

ROOT = Path(__file__).parents[2]
SECONDS = 30  # that reading one file may take; a machine may be busy
MEGABYTES = {"audio": 400, "picture": 1200}  # that it may take beside the libraries
FEWEST_CASES = 400
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def encoded(container: str, codec: str, rate: int = 16000, **options: str) -> bytes:
    """Half a second of sound by FFmpeg."""
    samples, before = speech(0.5)
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = before
        assert isinstance(stream.codec_context, av.AudioCodecContext)
        resampler = av.AudioResampler(
            stream.codec_context.format, "mono", rate, stream.codec_context.frame_size or 1024
        )
        for part in (*resampler.resample(frame), *resampler.resample(None), None):
            output.mux([packet for packet in stream.encode(part) if packet.size])
    return file.getvalue()


def written(container: str, subtype: str) -> bytes:
    """Half a second of stereo by libsndfile."""
    samples, rate = speech(0.5)
    file = io.BytesIO()
    soundfile.write(file, np.stack((samples, -samples), axis=1), rate, format=container, subtype=subtype)
    return file.getvalue()


def saved(format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    image = picture(60, 40)
    wide = np.asarray(image.convert("L"), np.uint16) * 257
    (Image.fromarray(wide) if mode == "I;16" else image.convert(mode)).save(file, format, **options)
    return file.getvalue()


@lru_cache(maxsize=1)
def sound_files() -> list[bytes]:
    return [
        *(
            written(container, "PCM_16")
            for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "VOC")
        ),
        *(written("WAV", subtype) for subtype in ("FLOAT", "ULAW", "MS_ADPCM", "IMA_ADPCM", "PCM_24")),
        *(written("OGG", subtype) for subtype in ("VORBIS", "OPUS")),
        *(encoded(container, "aac") for container in ("adts", "mp4", "mov", "matroska", "mpegts", "flv")),
        encoded("mp4", "aac", movflags="frag_keyframe+empty_moov"),
        encoded("webm", "libopus", 48000),
        encoded("ogg", "flac"),
        encoded("mp3", "libmp3lame"),
        encoded("asf", "wmav2", 44100),
        encoded("avi", "pcm_s16le"),
        encoded("wv", "wavpack"),
    ]


@lru_cache(maxsize=1)
def pictures() -> list[bytes]:
    second = picture(60, 40, seed=1)
    return [
        *(saved(format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")),
        *(saved(format) for format in ("TGA", "QOI", "PCX", "SGI")),
        *(saved("TIFF", mode) for mode in ("I;16", "I", "F", "CMYK", "LAB", "1", "RGBA")),
        *(saved("TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        *(saved("PNG", mode) for mode in ("I;16", "RGBA", "P", "LA", "1")),
        *(saved(format, save_all=True, append_images=[second]) for format in ("PNG", "GIF", "WEBP", "TIFF")),
        saved("JPEG", "CMYK"),
        saved("JPEG", progressive=True),
        saved("WEBP", lossless=True),
        saved("PNG", "P", transparency=3),
    ]


def mutated(files: list[bytes], number: int) -> bytes:
    """One of the files with up to six changes, of which most are in its first 200 bytes, where headers are."""
    random = np.random.default_rng(number)
    content = bytearray(files[number % len(files)])
    for _ in range(int(random.integers(1, 7))):
        end = len(content) if random.random() < 0.4 else min(200, len(content))
        place, width = int(random.integers(end + 1)), int(random.choice((1, 2, 4, 8)))
        match int(random.integers(8)):
            case 0:
                content[place : place + width] = random.bytes(width)
            case 1:
                value = int(random.choice(LENGTHS)) % (1 << 8 * width)
                content[place : place + width] = value.to_bytes(width, "big" if random.random() < 0.5 else "little")
            case 2 if place < len(content):
                content[place] ^= 1 << int(random.integers(8))
            case 3:
                del content[place : place + int(random.integers(1, 100))]
            case 4:
                content[place:place] = random.bytes(int(random.integers(1, 100)))
            case 5:
                content[place:place] = content[place : place + int(random.integers(1, 500))]
            case 6:
                other = files[int(random.integers(len(files)))]
                content[place:] = other[int(random.integers(len(other))) :]
            case _:
                del content[len(content) - int(random.integers(len(content) + 1)) // 4 :]
    return bytes(content)


class Reader:
    """The program that reads; started again where a file has ended it.

    Args:
        folder: for a file of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program: subprocess.Popen[bytes] | None = None

    def read(self, kind: str, content: bytes) -> str:
        """What became of a file: "read", "error", or what is wrong."""
        if self._program is None:
            command = [sys.executable, "-m", "tests.inputs.media_reader", self._folder / "media"]
            self._program = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        given, answers = self._program.stdin, self._program.stdout
        assert given is not None
        assert answers is not None
        given.write(pickle.dumps((kind, content)))
        given.flush()
        if not _ready(answers, SECONDS):
            self.close()
            return f"took more than {SECONDS} s"
        line = answers.readline().decode()
        if not line:
            code = self._program.wait()
            self.close()
            return f"ended the process with code {code}"
        memory, outcome = line.rstrip("\n").split(" ", 1)
        if int(memory) > MEGABYTES[kind]:
            self.close()  # its peak stays
            return f"took {memory} MB"
        return outcome

    def close(self) -> None:
        if self._program is not None:
            self._program.kill()
            self._program.communicate()
        self._program = None


def _ready(file: IO[bytes], seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(seconds))


@pytest.mark.slow
@pytest.mark.timeout(0)  # each file has its own bound
@pytest.mark.parametrize(("kind", "originals"), [("audio", sound_files), ("picture", pictures)])
def test_mutated_files(
    kind: str, originals: Callable[[], list[bytes]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    files = originals()
    outcomes = Counter[str]()
    faults = {}
    reader = Reader(tmp_path)
    try:
        for content in files:
            assert reader.read(kind, content) == "read"
        for number in range(max(request.config.getoption("--fuzz"), FEWEST_CASES)):
            outcome = reader.read(kind, mutated(files, number))
            outcomes[outcome] += 1
            if outcome not in ("read", "error"):
                faults[number] = outcome
    finally:
        reader.close()
    assert faults == {}
    assert outcomes["read"]
    assert outcomes["error"]

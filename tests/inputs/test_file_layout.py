"""Files that end before, or go on after, what their headers say."""

from __future__ import annotations

import io
import struct

import pytest

from phi4mm.errors import AudioError
from phi4mm.inputs.audio import load_audio
from phi4mm.inputs.audio_file import audio_seconds
from phi4mm.inputs.file_layout import known_sizes, ogg_links
from tests.inputs.media_files import SECONDS, encode, flac_in_ogg, written

MP3 = encode("mp3", "libmp3lame")
FILES = {
    "wav": written("WAV", "PCM_16"),
    "mp3 in wav": encode("wav", "libmp3lame"),
    "rf64": written("RF64", "PCM_16"),
    "w64": written("W64", "PCM_16"),
    "aiff": written("AIFF", "PCM_16"),
    "au": written("AU", "PCM_16"),
    "caf": written("CAF", "PCM_16"),
    "voc": written("VOC", "PCM_16"),
    "flac": written("FLAC", "PCM_16"),
    "vorbis": written("OGG", "VORBIS"),
    "opus": written("OGG", "OPUS"),
    "flac in ogg": flac_in_ogg(),
    "chained ogg": written("OGG", "OPUS") + written("OGG", "VORBIS"),
    "mp3": MP3,
    "m4a": encode("mp4", "aac"),
    "m4a in fragments": encode("mp4", "aac", movflags="frag_keyframe+empty_moov"),
    "mov": encode("mov", "pcm_s16le"),
    "mkv": encode("matroska", "aac"),
    "webm": encode("webm", "libopus", 48000),
    "webm of a browser": encode("webm", "libopus", 48000, live="1"),
    "wma": encode("asf", "wmav2", bit_rate=32000),
    "avi": encode("avi", "libmp3lame"),
    "flv": encode("flv", "libmp3lame", 44100),
    "rm": encode("rm", "ac3", 44100),
    "wavpack": encode("wv", "wavpack"),
    "tta": encode("tta", "tta"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_is_refused_wherever_it_is(kind: str) -> None:
    content = FILES[kind]
    assert load_audio(content).duration == pytest.approx((1 + (kind == "chained ogg")) * SECONDS, abs=0.15)
    for place in range(1, 20):
        with pytest.raises(AudioError, match=r"truncated|whole file|has no samples"):
            load_audio(content[: len(content) * place // 20])


SIZES = {  # where a header has the size of the samples, and how
    "wav": (FILES["wav"].index(b"data") + 4, "<I"),
    "rf64": (FILES["rf64"].index(b"ds64") + 16, "<Q"),
    "w64": (FILES["w64"].index(b"data") + 16, "<Q"),
    "aiff": (FILES["aiff"].index(b"SSND") + 4, ">I"),
    "au": (8, ">I"),
    "caf": (FILES["caf"].index(b"data") + 4, ">Q"),
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_size_that_is_unknown_or_a_few_bytes_too_large(kind: str) -> None:
    place, form = SIZES[kind]
    content = FILES[kind]
    (size,) = struct.unpack_from(form, content, place)
    for other in (0, (1 << 8 * struct.calcsize(form)) - 1, size + 8, size + 44):
        changed = bytearray(content)
        struct.pack_into(form, changed, place, other)
        assert load_audio(bytes(changed)).duration == pytest.approx(SECONDS, abs=0.01), other


def test_a_header_without_any_size() -> None:
    """As a program leaves it that writes into a pipe."""
    content = bytearray(FILES["aiff"])
    place = content.index(b"COMM") + 10
    content[4:8] = content[place : place + 4] = bytes(4)
    struct.pack_into(">I", content, SIZES["aiff"][0], 0)
    assert load_audio(bytes(content)).duration == SECONDS
    assert known_sizes(io.BytesIO(FILES["aiff"])) == {}


ID3V1 = b"TAG" + b"a" * 125
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"x" * 300 + b"000321LYRICS200"
APE_ITEM = b"\4\0\0\0\0\0\0\0Key\0abcd"
APE = b"APETAGEX" + struct.pack("<4I", 2000, 32 + len(APE_ITEM), 1, 0xA0000000) + bytes(8) + APE_ITEM
APE += b"APETAGEX" + struct.pack("<4I", 2000, 32 + len(APE_ITEM), 1, 0x80000000) + bytes(8)
ID3V2_4 = b"ID3\4\0\x10\0\0\1\0" + bytes(128) + b"3DI\4\0\x10\0\0\1\0"
TAGS = {"ID3v1": ID3V1, "Lyrics3": LYRICS + ID3V1, "APE": APE, "ID3v2.4": ID3V2_4, "zeros": bytes(5000)}


@pytest.mark.parametrize("kind", ["mp3", "mp3 without Xing header", "flac", "wavpack", "vorbis", "m4a", "mkv", "wma"])
def test_what_is_put_after_the_sound_is_not_sound(kind: str) -> None:
    content = FILES[kind] if kind in FILES else encode("mp3", "libmp3lame", write_xing="0")
    alone = load_audio(content).duration
    for tag, added in TAGS.items():
        assert load_audio(content + added).duration == pytest.approx(alone, abs=0.05), tag


def test_links_of_a_chained_file() -> None:
    parts = [written("OGG", "OPUS", 48000, 2), flac_in_ogg(44100, 2), written("OGG", "VORBIS"), flac_in_ogg()]
    content = b"".join(parts)
    ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
    assert ogg_links(io.BytesIO(content)) == list(zip([0, *ends[:-1]], ends, strict=True))
    assert load_audio(content).duration == pytest.approx(len(parts) * SECONDS, abs=0.1)
    assert audio_seconds(content) == pytest.approx(len(parts) * SECONDS, abs=0.1)
    assert ogg_links(io.BytesIO(FILES["wav"])) == [(0, len(FILES["wav"]))]

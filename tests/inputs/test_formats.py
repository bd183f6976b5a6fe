"""One file of each format that the manual lists, from each kind of source."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from phi4mm.asr.formats import FORMATS
from phi4mm.inputs.audio import load_audio

# No encoder is at hand: a file beside the data, of another length and sound.
from tests.conftest import CASES
from tests.inputs.media_files import SECONDS, encode, flac_in_ogg, peak_frequency, written

SPEEX = CASES / "old.spx"
MAKERS: dict[str, dict[str, Callable[[], bytes]]] = {
    "WAV": {
        "PCM": partial(written, "WAV", "PCM_24"),
        "float": partial(written, "WAV", "FLOAT"),
        "µ-law": partial(encode, "wav", "pcm_mulaw"),
        "A-law": partial(encode, "wav", "pcm_alaw"),
        "IMA ADPCM": partial(written, "WAV", "IMA_ADPCM"),
        "MS ADPCM": partial(written, "WAV", "MS_ADPCM"),
        "G.722": partial(encode, "wav", "g722"),
        "G.726": partial(encode, "wav", "g726", 8000),
        "G.721": partial(written, "WAV", "G721_32"),
        "PCM in RIFX": partial(written, "WAV", "PCM_16", endian="BIG"),
        "GSM 6.10": partial(written, "WAV", "GSM610"),
        "MP3": partial(encode, "wav", "libmp3lame"),
    },
    "RF64": {
        "PCM in RF64": partial(written, "RF64", "PCM_16"),
        "PCM in Wave64": partial(written, "W64", "PCM_16"),
    },
    "AIFF": {"PCM": partial(written, "AIFF", "PCM_24", endian="LITTLE"), "µ-law": partial(written, "AIFF", "ULAW")},
    "AU": {
        "PCM": partial(written, "AU", "PCM_16", endian="LITTLE"),
        "µ-law": partial(written, "AU", "ULAW"),
        "G.721": partial(written, "AU", "G721_32"),
        "G.722": partial(encode, "au", "g722"),
    },
    "CAF": {"PCM": partial(written, "CAF", "PCM_24"), "ALAC": partial(encode, "caf", "alac")},
    "FLAC": {"FLAC": partial(written, "FLAC", "PCM_16")},
    "Ogg": {
        "Vorbis": partial(written, "OGG", "VORBIS"),
        "Opus": partial(written, "OGG", "OPUS"),
        "FLAC": flac_in_ogg,
        "Speex": SPEEX.read_bytes,
    },
    "MPEG audio": {"MP3": partial(encode, "mp3", "libmp3lame"), "MP2": partial(encode, "mp2", "mp2")},
    "MP4": {
        "AAC": partial(encode, "mp4", "aac"),
        "ALAC": partial(encode, "ipod", "alac"),
        "MP3": partial(encode, "mp4", "libmp3lame"),
        "Opus": partial(encode, "mp4", "libopus", 48000),
        "AMR-NB": partial(encode, "3gp", "libopencore_amrnb", 8000),
        "PCM in MOV": partial(encode, "mov", "pcm_s16le"),
    },
    "Matroska": {
        "AAC": partial(encode, "matroska", "aac"),
        "AC-3": partial(encode, "matroska", "ac3", 48000),
        "MP3": partial(encode, "matroska", "libmp3lame"),
        "Opus": partial(encode, "matroska", "libopus", 48000),
        "PCM": partial(encode, "matroska", "pcm_s16le"),
        "Opus in WebM": partial(encode, "webm", "libopus", 48000),
    },
    "ASF": {
        "WMA 1": partial(encode, "asf", "wmav1", bit_rate=32000),
        "WMA 2": partial(encode, "asf", "wmav2", bit_rate=32000),
    },
    "AMR": {"AMR-NB": partial(encode, "amr", "libopencore_amrnb", 8000)},
    "AAC": {"AAC in ADTS": partial(encode, "adts", "aac")},
    "Dolby": {"AC-3": partial(encode, "ac3", "ac3", 48000), "E-AC-3": partial(encode, "eac3", "eac3", 48000)},
    "WavPack": {"WavPack": partial(encode, "wv", "wavpack"), "True Audio": partial(encode, "tta", "tta")},
    "MPEG streams": {
        "AAC": partial(encode, "mpegts", "aac"),
        "AC-3": partial(encode, "mpegts", "ac3", 48000),
        "MP2 in a programme stream": partial(encode, "vob", "mp2", 48000),
    },
    "AVI": {
        "MP3 in AVI": partial(encode, "avi", "libmp3lame"),
        "PCM in AVI": partial(encode, "avi", "pcm_s16le"),
        "AAC in FLV": partial(encode, "flv", "aac", 44100),
        "MP3 in FLV": partial(encode, "flv", "libmp3lame", 44100),
    },
    "RealMedia": {"RealAudio 14.4": partial(encode, "rm", "real_144", 8000)},
    "NIST SPHERE": {
        "PCM in SPHERE": partial(written, "NIST", "PCM_16"),
        "PCM in VOC": partial(written, "VOC", "PCM_16"),
        "PCM in IRCAM": partial(written, "IRCAM", "PCM_16"),
    },
}
CASES = [(file, codec) for file, codecs in FORMATS.items() for codec in codecs]


@pytest.mark.parametrize(("file", "codec"), CASES)
def test_a_file_of_each_format_from_each_source(tmp_path: Path, file: str, codec: str) -> None:
    [makers] = [makers for name, makers in MAKERS.items() if file.startswith(name)]
    if codec == "Speex" and not SPEEX.exists():
        pytest.skip("no file with Speex at hand")
    content = makers[codec]()
    path = tmp_path / "clip.mp3"  # whatever it is
    path.write_bytes(content)
    waveform = load_audio(path)
    if codec != "Speex":
        assert waveform.duration == pytest.approx(SECONDS, abs=0.15)
        assert peak_frequency(waveform) == pytest.approx(440, abs=2)
        power = np.square(np.abs(np.fft.rfft(waveform.samples)))
        assert power[: int(600 * waveform.duration)].sum() > 0.95 * power.sum()  # a wrong decoder gives noise
    np.testing.assert_array_equal(load_audio(content).samples, waveform.samples)
    with path.open("rb") as opened:
        np.testing.assert_array_equal(load_audio(opened).samples, waveform.samples)
    through = piped(content)
    # What an mp3's encoder adds at the end is known from its size, which a pipe has not.
    assert 0 <= len(through) - len(waveform.samples) <= (0.05 * waveform.sampling_rate if codec == "MP3" else 0)
    np.testing.assert_array_equal(through[: len(waveform.samples)], waveform.samples)


def test_the_table_lists_what_is_read() -> None:
    assert [len(makers) for makers in MAKERS.values()] == [len(codecs) for codecs in FORMATS.values()]


def piped(content: bytes) -> np.ndarray:
    """The samples of what comes through a pipe, as standard input does."""
    read, write = os.pipe()

    def feed() -> None:
        with open(write, "wb") as end:
            end.write(content)

    feeder = Thread(target=feed)
    feeder.start()
    with open(read, "rb") as pipe:
        samples = load_audio(pipe).samples
    feeder.join()
    return samples

"""Audio files and arrays to waveforms and log-mel frames."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4mm.errors import AudioError
from phi4mm.inputs.audio import (
    Waveform,
    is_narrow_band,
    levelled,
    load_audio,
    log_mel,
    mel_filters,
    narrowed,
    resample_for_model,
)

FORMATS = {
    "wav8": ("WAV", "PCM_U8"),
    "wav16": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wav32": ("WAV", "PCM_32"),
    "wavfloat": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
}


def sine(frequency: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def encode(samples: np.ndarray, rate: int = 16000, format: str = "wav16", **options: Any) -> bytes:
    container, subtype = FORMATS[format]
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype, **options)
    return file.getvalue()


def peak_frequency(waveform: Waveform) -> float:
    """Hz of the strongest bin."""
    spectrum = np.abs(np.fft.rfft(waveform.samples * np.hanning(len(waveform.samples))))
    return float(spectrum.argmax() / waveform.duration)


SAMPLES = Path(__file__).parents[2] / "assets" / "samples"
WAV = encode(sine(440, 16000))
SIZE_AT = WAV.index(b"data") + 4


def wav_with_size(size: int) -> bytes:
    return WAV[:SIZE_AT] + struct.pack("<I", size) + WAV[SIZE_AT + 4 :]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_format(tmp_path: Path, format: str, channels: int) -> None:
    path = tmp_path / f"clip.{format}"
    path.write_bytes(encode(np.stack([sine(440, 16000)] * channels, axis=1), format=format))
    waveform = load_audio(path)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 1
    assert waveform.sampling_rate == (48000 if format == "opus" else 16000)  # as opus decodes, whatever it was made of
    assert waveform.duration == pytest.approx(1.0, abs=1e-2)
    assert peak_frequency(waveform) == pytest.approx(440, abs=2)
    assert waveform.samples.std() == pytest.approx(0.5 / 2**0.5, abs=0.02)


@pytest.mark.parametrize("rate", [96000, 48000, 44100, 22050, 16001, 16000, 12000, 11025, 8000, 6000])
def test_rate(rate: int) -> None:
    resampled = resample_for_model(load_audio((sine(440, rate), rate)))
    assert resampled.sampling_rate == (16000 if rate >= 16000 else 8000)
    assert resampled.duration == pytest.approx(1.0, abs=1e-3)
    assert peak_frequency(resampled) == pytest.approx(440, abs=2)
    assert log_mel(resampled).shape == (98, 80)


def test_resampling_does_not_alias() -> None:
    resampled = resample_for_model(load_audio((sine(15000, 44100), 44100)))
    assert np.abs(resampled.samples[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("rate", [6000, 11025, 16000, 22050, 44100, 48000])
def test_shortest_clip_makes_one_frame(rate: int) -> None:
    shortest = -(-rate // 40)
    assert log_mel(load_audio((noise(shortest), rate))).shape == (1, 80)
    with pytest.raises(AudioError, match="shorter than one frame"):
        load_audio((noise(shortest - 1), rate))


def test_sources_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), WAV, file, io.BytesIO(WAV), soundfile.read(path)]
        first, *others = [load_audio(source).samples for source in sources]
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_arrays_agree() -> None:
    samples = noise(800)
    sources = [samples, samples.astype(np.float64), samples.tolist(), torch.from_numpy(samples), samples[:, None]]
    for source in sources:
        np.testing.assert_array_equal(load_audio((source, 16000)).samples, samples)


def test_channels_are_averaged() -> None:
    left, right = noise(800, 0), noise(800, 1)
    mixed = load_audio((np.stack([left, right], axis=1), 16000)).samples
    np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-7)


def test_source_is_not_shared_with_the_result() -> None:
    samples = noise(800)
    waveform = load_audio((samples, 16000))
    samples[:] = 0
    assert waveform.samples.any()


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF, len(WAV) - SIZE_AT - 4 + 44])
def test_wav_of_unknown_size_or_one_that_counts_its_header(size: int) -> None:
    np.testing.assert_array_equal(load_audio(wav_with_size(size)).samples, load_audio(WAV).samples)


def test_streamed_flac_of_unknown_size() -> None:
    content = bytearray(encode(noise(16000), format="flac"))
    content[21] &= 0xF0  # STREAMINFO's 36 bits of total samples
    content[22:26] = bytes(4)
    assert len(load_audio(bytes(content)).samples) == 16000


def without_xing(mp3: bytes) -> bytes:
    """The mp3 from its second frame on, as a program writing into a pipe leaves it."""
    return mp3[mp3.index(mp3[:2], 4) :]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_length_is_read_to_its_end(rate: int, channels: int) -> None:
    loud_first = noise(80000) * np.linspace(1, 0, 80000) ** 4
    mp3 = encode(np.stack([loud_first] * channels, axis=1), rate, format="mp3", bitrate_mode="VARIABLE")
    whole = load_audio(mp3).samples
    tag = b"ID3\x04\0\0\0\0\x01\x02" + bytes(130)
    for streamed in (without_xing(mp3), tag + without_xing(mp3)):
        delay = 1105  # of codec and encoder, which the Xing header tells a decoder to drop
        samples = load_audio(streamed).samples[delay:]
        np.testing.assert_allclose(samples[: len(whole)], whole, atol=1e-6)


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


RF64 = encode(noise(16000), format="rf64")
FLAC = encode(noise(16000), format="flac")
MP3 = encode(noise(16000), format="mp3")
BAD_FILES = {
    "empty": (b"", "empty"),
    "html": (b"<html><body>404 Not Found</body></html>" * 20, "not audio.*html"),
    "zeros": (bytes(5000), "not audio"),
    "tag alone": (b"ID3", "not audio"),
    "wav header alone": (WAV[:12], "not audio"),
    "wav cut in its format": (WAV[:20], "not audio"),
    "wav without samples": (encode(np.zeros(0)), "no samples"),
    "wav cut after its header": (WAV[: SIZE_AT + 4], "truncated"),
    "wav cut in half": (WAV[: len(WAV) // 2], "truncated"),
    "wav cut by 5 ms": (WAV[:-160], "truncated"),
    "wav of 64-bit size cut in half": (RF64[: len(RF64) // 2], "truncated"),
    "aiff cut in half": (encode(noise(16000), format="aiff")[:16000], "truncated"),
    "flac cut in half": (FLAC[: len(FLAC) // 2], "truncated"),
    "flac with a hole": (damaged(FLAC), "damaged or truncated"),
    "flac that promises years": (FLAC[:22] + b"\xff" * 4 + FLAC[26:], "truncated"),
    "mp3 cut in half": (MP3[: len(MP3) // 2], "truncated"),
    "20 ms": (encode(sine(440, 16000, 0.02)), "20 ms, shorter than one frame"),
    "NaN": (encode(np.full(800, np.nan), format="wavfloat"), "NaN"),
    "16-bit values as floats": (encode(sine(440, 16000) * 32768, format="wavfloat"), "divide.*32768"),
    "65 channels": (encode(np.zeros((800, 65))), "65 channels"),
    "rate of 2 GHz": (WAV[:24] + struct.pack("<I", 2_000_000_000) + WAV[28:], "2000000000 Hz"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=rf"^{re.escape(str(path))}: .*{message}") as from_path:
        load_audio(path)
    assert "\n" not in str(from_path.value)
    with pytest.raises(AudioError, match=rf"^audio 2: .*{message}"):
        load_audio(content, name="audio 2")


GOOD = noise(800)
BAD_SOURCES = {
    "missing": ("/no/such/clip.wav", "no such file"),
    "folder": (Path(__file__).parent, "folder"),
    "url": ("https://example.org/clip.wav", "URL"),
    "text file": (io.StringIO("a"), "str, expected"),
    "number": (5, "int, expected"),
    "nothing": (None, "NoneType, expected"),
    "array without rate": (GOOD, "ndarray, expected"),
    "three values": ((GOOD, 16000, 1), "tuple of 3"),
    "rate of zero": ((GOOD, 0), "rate 0"),
    "negative rate": ((GOOD, -16000), "rate -16000"),
    "fractional rate": ((GOOD, 16000.5), "rate 16000.5"),
    "rate as text": ((GOOD, "16000"), "rate '16000'"),
    "rate as truth": ((GOOD, True), "rate True"),
    "no samples": ((GOOD[:0], 16000), "no samples"),
    "empty list": (([], 16000), "no samples"),
    "integers": (((GOOD * 32768).astype(np.int16), 16000), "int16.*divide"),
    "integer tensor": ((torch.zeros(800, dtype=torch.int32), 16000), "int32.*divide"),
    "16-bit values": ((GOOD * 32768, 16000), "divide.*32768"),
    "complex": ((GOOD.astype(np.complex64), 16000), "complex64"),
    "text": ((["a", "b"], 16000), "floats"),
    "ragged": (([[0.1], [0.1, 0.2]], 16000), "not an array"),
    "three dimensions": ((GOOD.reshape(2, 2, 200), 16000), "shape"),
    "one number": ((0.5, 16000), "shape"),
    "channels first": ((GOOD.reshape(1, 800), 16000), "800 channels"),
    "no channels": ((np.zeros((800, 0), np.float32), 16000), "0 channels"),
    "NaN": ((np.full(800, np.nan), 16000), "NaN"),
    "infinite": ((np.full(800, np.inf), 16000), "infinite"),
    "beyond float32": ((np.full(800, 1e300), 16000), "infinite"),
    "25 hours": ((np.broadcast_to(np.float32(0), 25 * 3600 * 1000), 1000), "longer than 24 hours"),
    "a few Hz": ((np.zeros(1000, np.float32), 2), "2 Hz, expected 1000"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_source(case: str) -> None:
    source, message = BAD_SOURCES[case]
    with pytest.raises(AudioError, match=rf"^audio 2: .*{message}") as caught:
        load_audio(source, name="audio 2")
    assert "\n" not in str(caught.value)


def test_log_mel_of_too_few_samples() -> None:
    with pytest.raises(AudioError, match="shorter than one frame"):
        log_mel(Waveform(GOOD[:399], 16000))


def test_silence_is_the_floor() -> None:
    assert not log_mel(Waveform(np.zeros(16000, np.float32), 16000)).any()


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 4000))
def test_frame_count(samples: int) -> None:
    assert log_mel(Waveform(noise(samples), 16000)).shape == ((samples - 400) // 160 + 1, 80)
    assert log_mel(Waveform(noise(samples), 8000)).shape == ((samples - 200) // 80 + 1, 80)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 8000), rate=st.sampled_from([8000, 16000]))
def test_prefix(samples: int, rate: int) -> None:
    whole = log_mel(Waveform(noise(8000), rate))
    prefix = log_mel(Waveform(noise(8000)[:samples], rate))
    torch.testing.assert_close(prefix, whole[: len(prefix)], rtol=0, atol=1e-5)


def test_long_audio_goes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log_mel(Waveform(noise(8000), 16000))
    monkeypatch.setattr("phi4mm.inputs.audio.BLOCK_FRAMES", 7)
    torch.testing.assert_close(log_mel(Waveform(noise(8000), 16000)), whole, rtol=0, atol=1e-5)


def test_number_of_mels() -> None:
    assert log_mel(Waveform(GOOD, 16000), num_mels=40).shape == (3, 40)
    assert mel_filters(40).shape == (257, 40)


def test_8_khz_by_the_book() -> None:
    """The 8 kHz path, written out frame by frame; pre-emphasis in float32, as in transformers."""
    samples = noise(8000)
    expected = []
    for start in range(0, len(samples) - 200 + 1, 80):
        frame = samples[start : start + 200]
        emphasised = frame - 0.97 * np.concatenate((frame[:1], frame[:-1]))
        spectrum = np.fft.rfft(emphasised * 32768 * np.hamming(200), 256)
        power = np.concatenate((np.abs(spectrum[:128]) ** 2, np.zeros(129)))
        expected.append(np.log(np.maximum(power @ mel_filters().astype(np.float64), 1)))
    np.testing.assert_allclose(log_mel(Waveform(noise(8000), 8000)), np.array(expected), rtol=0, atol=1e-4)


def test_8_khz_leaves_the_upper_band_empty() -> None:
    features = log_mel(Waveform(noise(8000), 8000))
    empty = features.eq(0).all(dim=0)
    assert not empty[:50].any()
    assert empty[65:].all()


def test_what_was_recorded_at_8_khz_is_told_from_what_was_not() -> None:
    narrow = load_audio(SAMPLES / "telephone_8khz.flac")
    for resampled in (
        soxr.resample(narrow.samples, 8000, 16000),
        scipy.signal.resample_poly(narrow.samples, 2, 1),
        torchaudio.functional.resample(torch.from_numpy(narrow.samples), 8000, 16000).numpy(),
    ):
        sixteen_bits = (np.round(resampled * 32767) / 32768).astype(np.float32)
        assert is_narrow_band(Waveform(sixteen_bits, 16000))
    upsampled = soxr.resample(narrow.samples, 8000, 16000)
    faint = 1e-3 * np.random.default_rng(0).normal(size=len(upsampled))
    assert not is_narrow_band(Waveform((upsampled + faint).astype(np.float32), 16000))
    assert not is_narrow_band(Waveform(noise(16000), 16000))
    assert not is_narrow_band(Waveform(np.zeros(16000, np.float32), 16000))
    assert not is_narrow_band(Waveform(np.zeros(400, np.float32), 16000))
    assert not is_narrow_band(narrow)
    for path in SAMPLES.glob("*.flac"):
        assert not is_narrow_band(load_audio(path)), path


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(256, 8000))
def test_a_narrow_band_is_heard_at_8_khz(samples: int) -> None:
    narrow = Waveform(noise(samples), 8000)
    heard = narrowed(Waveform(soxr.resample(narrow.samples, 8000, 16000).astype(np.float32), 16000))
    assert heard.sampling_rate == 8000
    assert log_mel(heard).shape == log_mel(narrow).shape


@pytest.mark.parametrize("gain", [0.02, 0.3, 1.0, 3.0])
def test_levelled_audio_is_the_same_however_loud_it_was(gain: float) -> None:
    clip = load_audio(SAMPLES / "telephone.flac")
    expected = levelled(clip, 0.3)
    assert np.abs(expected.samples).max() == pytest.approx(0.3)
    found = levelled(Waveform(clip.samples * np.float32(gain), clip.sampling_rate), 0.3)
    np.testing.assert_allclose(found.samples, expected.samples, rtol=1e-5, atol=1e-7)


def test_what_is_almost_silent_stays_quiet() -> None:
    faint = Waveform(noise(16000) / np.abs(noise(16000)).max() * np.float32(1e-4), 16000)
    assert np.abs(levelled(faint, 0.3).samples).max() == pytest.approx(32e-4, rel=1e-4)
    silent = Waveform(np.zeros(16000, np.float32), 16000)
    assert not levelled(silent, 0.3).samples.any()
    assert len(levelled(Waveform(np.zeros(0, np.float32), 16000), 0.3).samples) == 0

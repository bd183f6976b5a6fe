"""Sound on the time line of its container, and the choice of a track."""

from __future__ import annotations

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from phi4mm.errors import AudioError
from phi4mm.inputs.audio import load_audio, stream_audio
from tests.inputs.media_files import encode, film, sounding, tone

FILMS = [
    ("matroska", "aac", "mpeg4"),
    ("webm", "libopus", "libvpx"),
    ("mp4", "aac", "mpeg4"),
    ("mov", "libmp3lame", "mpeg4"),
    ("flv", "libmp3lame", "flv1"),
    ("asf", "libmp3lame", "mpeg4"),
    ("mpegts", "aac", "mpeg4"),
    ("vob", "mp2", "mpeg2video"),
]


@pytest.mark.parametrize(("container", "codec", "picture"), FILMS)
def test_sound_that_begins_late_or_has_a_gap(container: str, codec: str, picture: str) -> None:
    rate = 44100 if container == "flv" else 48000
    late = film(container, codec, sound=[(3.4, 1.0)], picture=picture, rate=rate)
    assert sounding(load_audio(late)) == pytest.approx([3.4, 4.4], abs=0.05)
    gap = film(container, codec, sound=[(0.0, 1.0), (4.0, 1.0)], picture=picture, rate=rate)
    found = [0.0, 1.0, 4.0, 5.0]
    assert sounding(load_audio(gap)) == pytest.approx(found, abs=0.05)
    assert sum(part.duration for part in stream_audio(gap)) == pytest.approx(found[-1], abs=0.05)


@pytest.mark.parametrize("container", ["mpegts", "flv", "matroska", "mp4"])
def test_times_of_something_live_begin_anywhere(container: str) -> None:
    content = film(container, "libmp3lame", sound=[(0.0, 1.0), (3.0, 1.0)], begin=7200, picture=None, rate=44100)
    assert sounding(load_audio(content)) == pytest.approx([0.0, 1.0, 3.0, 4.0], abs=0.06)


def edited(content: bytes, *edits: tuple[float, float]) -> bytes:
    """An m4a with another edit list: how long each edit is, and where it begins in the track, in seconds; -1: empty."""
    place = content.index(b"elst") - 4
    (length,) = struct.unpack_from(">I", content, place)
    entries = [struct.pack(">IiI", int(1000 * d), -1 if b < 0 else int(16000 * b), 0x10000) for d, b in edits]
    box = struct.pack(">I4sII", 16 + sum(map(len, entries)), b"elst", 0, len(entries)) + b"".join(entries)
    changed = bytearray(content[:place] + box + content[place + length :])
    for kind in (b"moov", b"trak", b"edts"):
        start = changed.index(kind) - 4
        struct.pack_into(">I", changed, start, struct.unpack_from(">I", changed, start)[0] + len(box) - length)
    return bytes(changed)


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "alac"])
def test_an_edit_list(codec: str) -> None:
    content = encode("mp4", codec)
    assert sounding(load_audio(edited(content, (1.5, -1), (2.0, 0.1)))) == pytest.approx([1.5, 3.4], abs=0.12)
    assert load_audio(edited(content, (1.0, 0.5))).duration == pytest.approx(1.0, abs=0.1)
    assert load_audio(edited(content, (0.5, 0.0), (0.5, 1.4))).duration == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("codec", ["libmp3lame", "libopus"])
def test_what_an_encoder_adds_in_front_is_dropped(codec: str) -> None:
    content = encode("mp3" if codec == "libmp3lame" else "ogg", codec, 48000)
    samples = load_audio(content).samples
    error = np.abs(samples[4800:48000] - tone(48000)[4800:48000])
    assert error.max() < 0.1


def with_tracks(default: int | None) -> bytes:
    """A Matroska file with tracks of 300, 440 and 600 Hz, one of them marked as default."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"default_mode": "passthrough"}) as output:
        streams = [output.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(3)]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number == default else 0
        for start in range(0, 16000, 1600):
            for stream, frequency in zip(streams, (300.0, 440.0, 600.0), strict=True):
                samples = (32767 * tone(frequency=frequency)[start : start + 1600]).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
                output.mux(stream.encode(frame))
    return file.getvalue()


def test_a_choice_of_track() -> None:
    content = with_tracks(default=1)
    tracks = {None: 440, 0: 300, 1: 440, 2: 600}
    for track, frequency in tracks.items():
        samples = load_audio(content, track=track).samples
        assert np.abs(np.fft.rfft(samples)).argmax() == frequency
    assert np.abs(np.fft.rfft(load_audio(with_tracks(default=None)).samples)).argmax() == 300
    with pytest.raises(AudioError, match=r"^audio: has no sound track 4, it has 3 sound tracks"):
        load_audio(content, track=3)
    with pytest.raises(AudioError, match="has no sound track 2, it has one sound track"):
        next(stream_audio(encode("mp4", "aac"), track=1))

"""Files of many containers and codecs, made here; and audio whose form changes on the way."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from phi4mm.errors import AudioError, AudioReadError
from phi4mm.inputs import audio_file
from phi4mm.inputs.audio import Waveform, load_audio, num_channels, stream_audio
from phi4mm.inputs.audio_file import audio_seconds
from tests.inputs.media_files import RATE, SECONDS, encode, peak_frequency, tone, written

MP3 = encode("mp3", "libmp3lame")
FILES = {
    "m4a": encode("mp4", "aac"),
    "m4a in fragments": encode("mp4", "aac", movflags="frag_keyframe+empty_moov"),
    "mov": encode("mov", "alac"),
    "mkv": encode("matroska", "aac"),
    "webm": encode("webm", "libopus", 48000),
    "webm of a browser, without duration": encode("webm", "libopus", 48000, live="1"),
    "aac": encode("adts", "aac"),
    "mp3": MP3,
    "mp3 without Xing header": encode("mp3", "libmp3lame", write_xing="0"),
    "mp3 padded with zeros": MP3 + bytes(4096),
    "mp3 in wav": encode("wav", "libmp3lame"),
    "vorbis": written("OGG", "VORBIS"),
    "avi": encode("avi", "libmp3lame"),
    "flv": encode("flv", "aac"),
    "mpeg transport stream": encode("mpegts", "aac"),
    "wavpack": encode("wv", "wavpack"),
    "adpcm": written("WAV", "IMA_ADPCM"),
    "gsm": written("WAV", "GSM610"),
    "mu-law": written("AU", "ULAW"),
    "sphere": written("NIST", "PCM_16"),
    "caf": written("CAF", "PCM_24"),
    "w64": written("W64", "PCM_16"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_contents_decide(tmp_path: Path, kind: str) -> None:
    misnamed = tmp_path / "clip.wav"
    misnamed.write_bytes(FILES[kind])
    waveform = load_audio(misnamed)
    assert waveform.duration == pytest.approx(SECONDS, abs=0.15)
    assert peak_frequency(waveform) == pytest.approx(440, abs=2)
    with misnamed.open("rb") as file:
        np.testing.assert_array_equal(load_audio(file).samples, waveform.samples)
    seconds = audio_seconds(misnamed)
    assert seconds is None or seconds == pytest.approx(SECONDS, abs=1.5)  # that of the padded mp3 is estimated
    assert num_channels(misnamed) == 1


def test_truncated_with_its_index_in_front(tmp_path: Path) -> None:
    path = tmp_path / "clip.m4a"
    with (
        av.open(io.BytesIO(FILES["m4a"])) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    assert load_audio(path).duration == pytest.approx(SECONDS, abs=0.15)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(AudioError, match=r"clip\.m4a: is truncated"):
        load_audio(path)


def test_truncated_mp3_with_a_cover() -> None:
    cover = b"ID3\x04\0\0\0\1\0\0" + bytes(1 << 14)
    assert load_audio(cover + MP3).duration == pytest.approx(SECONDS, abs=0.15)
    with pytest.raises(AudioError, match="truncated"):
        load_audio(cover + MP3[: len(MP3) // 2])


def test_film_without_sound() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no sound track"):
        load_audio(file.getvalue())


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n",
    "hls, absolute": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{1}\n#EXT-X-ENDLIST\n",
    "hls, a path": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{1}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "concat, absolute": "ffconcat version 1.0\nfile {1}\n",
    "quicktime's text": "<?xml version='1.0'?><?quicktime type='application/x-quicktime-media-link'?>"
    "<embed src='{1}'/>",
    "asx": "<asx version='3.0'><entry><ref href='{1}'/></entry></asx>",
    "pls": "[playlist]\nFile1={1}\nNumberOfEntries=1\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={0}\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet><Representation id="1" mimeType="audio/wav"><BaseURL>{0}</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".m3u8", ".ts", ".mp4", ".wav"])
def test_a_playlist_opens_nothing(tmp_path: Path, kind: str, suffix: str) -> None:
    other = tmp_path / "other.wav"
    soundfile.write(other, tone(), RATE)
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind].format(other.name, other))
    with pytest.raises(AudioError, match="not audio that can be read"):
        load_audio(path)


def test_joined_files_are_read_to_the_end() -> None:
    for first, second in (
        (MP3, MP3),
        (FILES["aac"], FILES["aac"]),
        (written("OGG", "VORBIS"), written("OGG", "VORBIS")),
        (written("OGG", "OPUS"), written("OGG", "OPUS")),
    ):
        waveform = load_audio(first + second)
        assert waveform.duration == pytest.approx(2 * SECONDS, abs=0.3)
        assert peak_frequency(waveform) == pytest.approx(440, abs=2)


def parts(*rates: int) -> Iterator[tuple[np.ndarray, int]]:
    for rate in rates:
        yield tone(rate), rate


@pytest.mark.parametrize("rates", [(8000, 16000, 44100), (44100, 8000, 16000), (16000, 44100, 16000), (16000, 16000)])
def test_parts_of_different_rates(rates: tuple[int, ...]) -> None:
    whole = load_audio(parts(*rates))
    assert whole.sampling_rate == rates[0]
    streamed = list(stream_audio(parts(*rates)))
    model_rate = min(rates[0], 16000)
    assert {part.sampling_rate for part in streamed} == {model_rate}
    for waveform in (whole, Waveform(np.concatenate([part.samples for part in streamed]), model_rate)):
        assert waveform.duration == pytest.approx(len(rates) * SECONDS, abs=1e-3)
        for index in range(len(rates)):
            size = len(waveform.samples) // len(rates)
            part = Waveform(waveform.samples[index * size : (index + 1) * size], waveform.sampling_rate)
            assert peak_frequency(part) == pytest.approx(440, abs=2)


def test_a_file_whose_rate_changes() -> None:
    waveform = load_audio(encode("adts", "aac", 48000) + encode("adts", "aac", 16000))
    assert waveform.sampling_rate == 48000
    assert waveform.duration == pytest.approx(2 * SECONDS, abs=0.3)
    half = len(waveform.samples) // 2
    for samples in (waveform.samples[:half], waveform.samples[half:]):
        assert peak_frequency(Waveform(samples, 48000)) == pytest.approx(440, abs=2)


class Watched(io.BytesIO):
    """A file that remembers its largest read."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.largest = max(self.largest, len(content))
        return content


@pytest.mark.parametrize("content", [written("WAV", "FLOAT", 192000), encode("mp3", "libmp3lame", write_xing="0")])
def test_no_file_is_read_whole(content: bytes) -> None:
    size_at = content.find(b"data") + 4
    if content.startswith(b"RIFF"):
        content = content[:size_at] + bytes(4) + content[size_at + 4 :]
    file = Watched(content)
    assert sum(part.duration for part in stream_audio(file)) == pytest.approx(SECONDS, abs=0.2)
    assert file.largest <= 1 << 17


class FailingRaw(io.BytesIO):
    """A file whose bytes from a place on cannot be read."""

    def __init__(self, content: bytes, place: int) -> None:
        super().__init__(content)
        self._place = place

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(min(size or 0, 1024))
        if self.tell() > self._place:
            raise OSError(errno.EIO, "Input/output error")
        return content


def test_a_file_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Watched):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 20_000:
                raise OSError("the disk is gone")
            return super().read(min(size or 0, 4096))

    with pytest.raises(AudioReadError, match=r"^audio: .*the disk is gone"):
        load_audio(Failing(written("WAV", "PCM_16")))
    raw: Any = FailingRaw(MP3, len(MP3) // 2)
    monkeypatch.setattr(audio_file, "_in_place", lambda source, name: source)
    with pytest.raises(AudioReadError, match=r"^audio: .*Input/output error"):
        load_audio(raw)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that always fails")
def test_a_path_that_cannot_be_read() -> None:
    with pytest.raises(AudioReadError, match=r"^/proc/self/mem: cannot be read"):
        load_audio("/proc/self/mem")


def test_a_track_that_begins_on_the_way() -> None:
    other = encode("mpegts", "aac", mpegts_start_pid="500", mpegts_service_id="7", mpegts_pmt_start_pid="600")
    waveform = load_audio(FILES["mpeg transport stream"] * 30 + other)
    assert waveform.duration == pytest.approx(30 * SECONDS, rel=0.1)

"""Media files that are made here: a tone of 440 Hz in many containers and codecs, and films."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import soundfile

from phi4mm.inputs.audio import Waveform

RATE = 16000
SECONDS = 2.0


def tone(rate: int = RATE, seconds: float = SECONDS, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encode(container: str, codec: str, rate: int = RATE, bit_rate: int | None = None, **options: str) -> bytes:
    """The tone, by FFmpeg. An AAC encoder adds 64 ms of its delay and fills its last frame."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        _mux(output, stream, tone(rate), rate)
        output.mux(stream.encode(None))
    return file.getvalue()


def _mux(output: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    form = stream.codec_context
    form.open()
    resampler = av.AudioResampler(form.format, form.layout, rate, form.frame_size or 1024)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        output.mux(stream.encode(part))


def written(container: str, subtype: str, rate: int = RATE, channels: int = 1, **options: str) -> bytes:
    """The tone, by libsndfile."""
    file = io.BytesIO()
    samples = np.stack([tone(rate)] * channels, axis=1)
    soundfile.write(file, samples, rate, format=container, subtype=subtype, **options)
    return file.getvalue()


def remuxed(content: bytes, container: str) -> bytes:
    """The same packets in another container."""
    file = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(file, "w", format=container) as copy:
        stream = copy.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return file.getvalue()


def flac_in_ogg(rate: int = RATE, channels: int = 1) -> bytes:
    return remuxed(written("FLAC", "PCM_16", rate, channels), "ogg")


def film(
    container: str,
    codec: str,
    *,
    sound: Sequence[tuple[float, float]],
    begin: float = 0.0,
    picture: str | None = "mpeg4",
    rate: int = 48000,
    **options: str,
) -> bytes:
    """Six seconds of black at 25 frames a second, and a tone.

    Args:
        sound: where in the film the tone begins, and how long it is, in seconds; nothing lies between.
        begin: the time stamp at which the film begins, in seconds.
        picture: the codec; ``None``: the sound alone.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options) as output:
        frames: list[tuple[float, av.Stream, av.AudioFrame | av.VideoFrame]] = []
        if picture is not None:
            video = output.add_stream(picture, rate=25)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            for number in range(150):
                image = av.VideoFrame.from_ndarray(np.zeros((96, 64), np.uint8), format="yuv420p")
                image.pts, image.time_base = number + round(25 * begin), Fraction(1, 25)
                frames.append((number / 25, video, image))
        audio = output.add_stream(codec, rate=rate, layout="mono")
        form = audio.codec_context
        form.open()
        size = form.frame_size or 1024
        for start, seconds in sound:
            for number in range(int(seconds * rate) // size):
                samples = tone(rate, size / rate + 1)[:size]
                frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                [part] = av.AudioResampler(form.format, form.layout, rate).resample(frame)
                part.pts, part.time_base = round((start + begin) * rate) + number * size, Fraction(1, rate)
                frames.append((start + number * size / rate, audio, part))
        for _, stream, frame in sorted(frames, key=lambda item: item[0]):
            output.mux(stream.encode(frame))
        for stream in output.streams:
            output.mux(stream.encode(None))
    return file.getvalue()


def sounding(waveform: Waveform) -> list[float]:
    """Where the tone begins and ends, in seconds, and begins and ends again."""
    hop = waveform.sampling_rate // 50
    whole = np.abs(waveform.samples[: len(waveform.samples) // hop * hop])
    loud = np.concatenate(([False], whole.reshape(-1, hop).max(axis=1) > 0.15, [False]))
    return [float(place) / 50 for place in np.flatnonzero(np.diff(loud.astype(int)))]


def peak_frequency(waveform: Waveform) -> float:
    spectrum = np.abs(np.fft.rfft(waveform.samples * np.hanning(len(waveform.samples))))
    return float(spectrum.argmax() / waveform.duration)

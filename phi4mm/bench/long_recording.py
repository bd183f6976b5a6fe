"""A long recording made of clips, against the clips one by one."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import jiwer
import numpy as np
import soundfile
import soxr

from phi4mm.api import Phi4MM
from phi4mm.errors import Phi4MMError
from phi4mm.inputs.audio import load_audio

RATE = 16000
PAUSE = (1.2, 3.0)  # seconds between clips
FRAME = 0.03  # seconds
LASTING = 4  # frames that it must last; clicks do not
QUIET = 0.3  # seconds put around a clip to be aligned
SPHINX_FRAME = 0.01  # seconds
SHORT_SECONDS = 30.0  # of the file that the memory is compared with


def audible_from(samples: np.ndarray, audible: float) -> float:
    """Seconds to the moment from which speech is less than ``audible`` dB below the loudest frame."""
    step = round(FRAME * RATE)
    power = np.square(samples[: len(samples) // step * step]).reshape(-1, step).mean(1)
    heard = power > power.max() * 10 ** (-audible / 10)
    lasting = np.lib.stride_tricks.sliding_window_view(heard, LASTING).all(1)
    return float((np.flatnonzero(lasting) if lasting.any() else np.flatnonzero(heard))[0]) * FRAME


def aligned_from(samples: np.ndarray, text: str) -> float:
    """Seconds to the first word, as PocketSphinx's forced alignment finds it; a ``Phi4MMError`` where it finds none."""
    import pocketsphinx

    decoder = pocketsphinx.Decoder(lm=None, samprate=RATE, loglevel="FATAL")
    decoder.set_align_text(text)
    around = np.zeros(round(QUIET * RATE), np.float32)
    decoder.start_utt()
    pcm = np.concatenate((around, samples, around)).clip(-1, 1) * 32767
    decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    words = [part for part in decoder.seg() if not part.word.startswith(("<", "[", "("))]
    if not words:
        raise Phi4MMError(f"{text!r}: PocketSphinx cannot align it with its clip; leave the clip out, or --align")
    return float(words[0].start_frame) * SPHINX_FRAME - QUIET


@dataclass(frozen=True)
class Clip:
    """Samples at 16 kHz, what is said, and where in seconds that begins."""

    samples: np.ndarray
    text: str
    start: float


def read_manifest(manifest: Path, start_of: Callable[[np.ndarray, str], float]) -> Iterator[Clip]:
    """The clips of a manifest (JSON lines: audio_filepath relative to the manifest, text)."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        waveform = load_audio(manifest.parent / row["audio_filepath"])
        samples = soxr.resample(waveform.samples, waveform.sampling_rate, RATE)
        yield Clip(samples, row["text"], start_of(samples, row["text"]))


def write_long(path: Path, clips: Sequence[Clip], seconds: float) -> tuple[list[float], list[str]]:
    """Write clips one after another with pauses until there are ``seconds``; when each begins, and what is said."""
    random = Random(0)
    starts, texts, length = list[float](), list[str](), 0
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while length < seconds * RATE:
            clip = clips[len(texts) % len(clips)]
            pause = np.zeros(round(random.uniform(*PAUSE) * RATE), np.float32)
            starts.append((length + len(pause)) / RATE + clip.start)
            texts.append(clip.text)
            length += len(pause) + len(clip.samples)
            file.write(pause)
            file.write(clip.samples)
    return starts, texts


@dataclass(frozen=True)
class Found:
    """What is in a file: its duration, the start and text of each segment, the seconds that it took to transcribe, and
    the peak memory of the process in bytes."""

    duration: float
    segments: list[tuple[float, str]]
    seconds: float
    peak_bytes: int


def transcribe(path: Path) -> Found:
    phi4mm = Phi4MM.from_pretrained()
    begun = time.perf_counter()
    transcript = phi4mm.transcribe(path)
    seconds = time.perf_counter() - begun
    segments = [(segment.start, segment.text) for segment in transcript.segments]
    return Found(transcript.duration, segments, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def transcribed_alone(path: Path) -> Found:
    """``transcribe`` in a process of its own, whose peak memory is that of this file."""
    command = [sys.executable, "-m", "phi4mm.bench.long_file", "--file", str(path)]
    return Found(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def measure(manifest: Path, *, minutes: float, audible: float, align: bool) -> None:
    """Print how a recording made of a manifest's clips is transcribed.

    Args:
        minutes: of the recording.
        audible: a clip begins where it is less than so many dB below its loudest.
        align: a clip begins where PocketSphinx's alignment of its text says, instead.

    Raises:
        Phi4MMError: a clip cannot be read or aligned.
        OSError: the manifest cannot be read.
    """
    start_of = aligned_from if align else lambda samples, text: audible_from(samples, audible)
    clips = list(read_manifest(manifest, start_of))
    with tempfile.TemporaryDirectory() as folder:
        long, short = Path(folder) / "long.wav", Path(folder) / "short.wav"
        starts, texts = write_long(long, clips, 60 * minutes)
        write_long(short, clips, SHORT_SECONDS)
        found, brief = transcribed_alone(long), transcribed_alone(short)
    alone = Phi4MM.from_pretrained().transcribe_batch([(clip.samples, RATE) for clip in clips])
    one_by_one = jiwer.wer(texts, [alone[number % len(clips)].text for number in range(len(texts))])
    together = jiwer.wer(" ".join(texts), " ".join(text for _, text in found.segments))
    errors = [min(abs(start - true) for true in starts) for start, _ in found.segments]
    late = sum(error > 0.3 for error in errors)
    growth = found.peak_bytes / brief.peak_bytes
    print(f"{found.duration:.0f} s, {len(texts)} clips, {len(found.segments)} segments, {found.seconds:.0f} s of work")
    print(f"word error rate: {100 * together:.2f} % in the file, {100 * one_by_one:.2f} % clip by clip")
    print(f"segment starts: off by {np.median(errors):.3f} s (median), {max(errors):.3f} s (most), {late} over 0.3 s")
    print(f"peak memory of the process: {growth:.2f} times that of a file of {SHORT_SECONDS:.0f} s")

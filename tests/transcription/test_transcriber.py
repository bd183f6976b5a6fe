"""Retries on a model that plays a script; long audio on the bundled checkpoint."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from phi4mm import AudioError, Phi4MM, PromptError, Reply, Request, Route
from phi4mm.inputs.audio import load_audio, stream_audio
from phi4mm.model.config import FrontEndConfig
from phi4mm.model.phi4mm import Phi4MMModel
from phi4mm.transcription.options import SpeechOptions
from phi4mm.transcription.transcriber import Transcription
from phi4mm.types import Usage
from tests.media import speech

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
CLIPS = [SAMPLES / f"{name}.flac" for name in ("digit", "three_digits", "telephone", "eight_digits", "number")]
RATE = 16000
PAUSE = 1.5
LOOP = "and so on " * 20


@pytest.fixture(scope="module")
def bundled() -> Phi4MM:
    return Phi4MM.from_pretrained()


@pytest.fixture
def scripted() -> Any:
    """Makes a model that answers (text, log-probability) by temperature, and keeps what it was asked."""

    def make(script: dict[float, tuple[str, float]]) -> Any:
        asked: list[Request] = []

        def chat_batch(requests: list[Request], *, batch_size: int = 16) -> list[Reply]:
            asked.extend(requests)
            chosen = [script[request.temperature] for request in requests]
            return [Reply(text, (), Route(None, None), "stop", score, Usage(1, 1)) for text, score in chosen]

        model = SimpleNamespace(config=SimpleNamespace(front_end=FrontEndConfig()))
        return SimpleNamespace(chat_batch=chat_batch, model=model, processor=None, asked=asked)

    return make


def said(chat: Any, **options: Any) -> list[tuple[str, float | None]]:
    run = Transcription(chat, stream_audio(speech(2.0)), Request("Say"), SpeechOptions(vad=False, **options))
    return [(segment.text, segment.temperature) for segment in run]


def test_a_loop_is_decoded_again(scripted: Any) -> None:
    chat = scripted({0.0: (LOOP, -0.1), 0.2: (LOOP, -0.1), 0.4: ("words", -0.5)})
    assert said(chat) == [("words", 0.4)]
    assert [request.seed for request in chat.asked] == [None, 1, 2]


def test_an_improbable_reply_is_decoded_again_and_the_best_is_kept(scripted: Any) -> None:
    chat = scripted({0.0: ("a", -3.0), 0.5: ("b", -1.5), 1.0: ("c", -2.0)})
    assert said(chat, temperature_increment=0.5) == [("b", 0.5)]
    assert said(chat, temperature_increment=0) == [("a", 0.0)]
    assert said(chat, logprob_threshold=-4.0) == [("a", 0.0)]


def test_nothing_is_retried_when_all_is_well_and_nothing_said_is_no_segment(scripted: Any) -> None:
    chat = scripted({0.0: ("fine", -0.2)})
    assert said(chat) == [("fine", 0.0)]
    assert len(chat.asked) == 1
    assert said(scripted({0.0: (" ", -5.0)})) == []


@pytest.mark.parametrize("option", [{"max_piece": 0}, {"channel": -1}, {"batch_size": 0}, {"temperature_increment": 2}])
def test_bad_options(option: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=next(iter(option))):
        SpeechOptions(**option)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_the_model(
    tiny_model: Phi4MMModel, tokenizer_file: Path, temperature: float
) -> None:
    tiny = Phi4MM(tiny_model, tokenizer_file)
    requests = [
        Request("Say", audios=[speech(seconds)], max_new_tokens=size, temperature=temperature, seed=1)
        for seconds, size in ((0.5, 6), (0.9, 9))
    ]
    for request, reply in zip(requests, tiny.chat_batch(requests), strict=True):
        row = tiny.processor.row(request)
        batch = tiny.processor.collate([row])
        scores = []
        embeddings = tiny.model.embed(batch)
        for token_id in reply.token_ids:  # one token after another, without a cache
            length = embeddings.shape[1]
            hidden = tiny.model.decoder(
                embeddings, torch.arange(length)[None], torch.tensor([False]), gate=tiny.model.gate(batch.routes)
            )
            scores.append(float(tiny.model.decoder.logits(hidden[0, -1]).log_softmax(-1)[token_id]))
            said = tiny.model.decoder.embed_tokens(torch.tensor([[token_id]]))
            embeddings = torch.cat((embeddings, said), dim=1)
        assert len(scores) == reply.usage.new_tokens  # none of them ended by itself
        assert reply.avg_logprob == pytest.approx(np.mean(scores), abs=1e-4)


def long_file(path: Path, rounds: int) -> list[float]:
    """Writes the clips one after another with pauses; returns where each begins to speak (its first loud 10 ms)."""
    starts, parts, length = [], [], 0
    for clip in CLIPS * rounds:
        samples = load_audio(clip).samples
        level = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1)
        starts.append((length + 160 * int(np.argmax(level > 0.05 * level.max()))) / RATE)
        parts += [samples, np.zeros(int(PAUSE * RATE), np.float32)]
        length += len(samples) + int(PAUSE * RATE)
    soundfile.write(path, np.concatenate(parts), RATE)
    return starts


def test_a_long_file_says_what_its_clips_say(bundled: Phi4MM, tmp_path: Path) -> None:
    file = tmp_path / "long.flac"
    starts = long_file(file, rounds=3)
    alone = [transcript.text for transcript in bundled.transcribe_batch(CLIPS)] * 3
    transcript = bundled.transcribe(file)
    assert jiwer.wer(" ".join(alone), transcript.text) <= 0.005
    assert [segment.start for segment in transcript.segments] == pytest.approx(starts, abs=0.3)
    assert transcript.duration == pytest.approx(soundfile.info(file).duration)
    assert all(segment.avg_logprob is not None and segment.avg_logprob > -1 for segment in transcript.segments)


def test_segments_come_lazily(bundled: Phi4MM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.flac"
    long_file(file, rounds=2)
    calls: list[int] = []
    chat_batch = bundled.chat_batch
    monkeypatch.setattr(
        bundled,
        "chat_batch",
        lambda requests, **options: calls.append(len(requests)) or chat_batch(requests, **options),
    )
    segments = bundled.transcribe_stream(file, batch_size=2)
    assert calls == []
    first = next(segments)
    assert calls == [2]
    assert first.text == "seven"
    assert len(list(segments)) == 9
    with pytest.raises(AudioError, match=r"gone\.wav"):
        next(bundled.transcribe_stream("gone.wav"))
    with pytest.raises(PromptError, match="max_piece"):
        bundled.transcribe_stream(file, max_piece=0)


def test_memory_does_not_grow_with_the_length(bundled: Phi4MM, tmp_path: Path) -> None:
    peaks = []
    for rounds in (3, 30):
        file = tmp_path / f"{rounds}.wav"
        long_file(file, rounds)
        tracemalloc.start()
        run = Transcription(bundled, stream_audio(file), Request(), SpeechOptions())
        assert sum(1 for _ in run.pieces()) == 5 * rounds
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("rate", [44100, 48000, 22050, 11025, 8000])
def test_any_rate_says_the_same(bundled: Phi4MM, rate: int) -> None:
    import soxr

    clip = load_audio(SAMPLES / "telephone.flac")
    resampled = soxr.resample(clip.samples, clip.sampling_rate, rate)
    assert bundled.transcribe((resampled, rate)).text == "five five two eight oh one four"


def test_stereo_with_one_silent_side(bundled: Phi4MM) -> None:
    clip = load_audio(SAMPLES / "telephone.flac")
    stereo = np.stack((clip.samples, np.zeros_like(clip.samples)), axis=1)
    assert bundled.transcribe((stereo, RATE)).text == "five five two eight oh one four"
    assert bundled.transcribe((stereo, RATE), channel=1).text == ""
    with pytest.raises(AudioError, match="channel 3"):
        bundled.transcribe((stereo, RATE), channel=2)


def test_silence_and_noise_say_nothing(bundled: Phi4MM) -> None:
    for samples in (np.zeros(RATE * 4), np.random.default_rng(0).normal(0, 0.1, RATE * 4)):
        transcript = bundled.transcribe((samples, RATE))
        assert (transcript.text, transcript.segments) == ("", ())
        assert transcript.duration == 4.0

"""Retries on a model that plays a script; long audio on the bundled checkpoint."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from phi4mm import AudioError, Phi4MM, PromptError, Reply, Request, Route
from phi4mm.engine.client import Client
from phi4mm.engine.handle import Handle
from phi4mm.engine.row import Group
from phi4mm.engine.sampler import Choice
from phi4mm.inputs.audio import Waveform, load_audio, stream_audio
from phi4mm.model.config import FrontEndConfig
from phi4mm.model.lora import row_adapters
from phi4mm.transcription.options import SpeechOptions
from phi4mm.transcription.transcriber import Ended, Transcription, together
from phi4mm.types import Segment, Usage
from tests.media import speech

SAMPLES = Path(__file__).parent.parent.parent / "assets" / "samples"
CLIPS = [SAMPLES / f"{name}.flac" for name in ("digit", "three_digits", "telephone", "eight_digits", "number")]
RATE = 16000
PAUSE = 1.5
LOOP = "and so on " * 20


class ScriptedClient:
    """Answers (text, mean log-probability), or fails, by temperature, at once; and keeps what it was asked."""

    def __init__(self, script: dict[float, tuple[str, float] | Exception]) -> None:
        self.script = script
        self.asked: list[Request] = []
        self.model = SimpleNamespace(config=SimpleNamespace(front_end=FrontEndConfig()))

    def submit(self, request: Request, group: Group) -> Handle:
        self.asked.append(request)
        answer, handle = self.script[request.sampling.temperature], Handle()
        if isinstance(answer, Exception):
            handle.fail(answer)
        else:
            handle.begin(ScriptedAnswer(*answer), lambda: None)
            handle.push(Choice(0, 0.0), "stop", 0)
        return handle


class ScriptedAnswer(SimpleNamespace):
    """What a handle takes for the answer of its row."""

    finished = True

    def __init__(self, text: str, logprob: float) -> None:
        super().__init__(push=lambda *_: text, reply=lambda: Reply(text, (), Route(), "stop", logprob, Usage(1, 1)))


def transcribed(client: Any, **options: Any) -> list[tuple[str, float | None]]:
    run = Transcription(client, stream_audio(speech(2.0)), Request("Say"), SpeechOptions(vad=False, **options))
    return [(segment.text, segment.temperature) for segment in run]


def test_a_loop_is_decoded_again() -> None:
    client = ScriptedClient({0.0: (LOOP, -0.1), 0.2: (LOOP, -0.1), 0.4: ("words", -0.5)})
    assert transcribed(client) == [("words", 0.4)]
    assert [request.sampling.seed for request in client.asked] == [None, 1, 2]


def test_an_improbable_reply_is_decoded_again_and_the_best_is_kept() -> None:
    client = ScriptedClient({0.0: ("a", -3.0), 0.5: ("b", -1.5), 1.0: ("c", -2.0)})
    assert transcribed(client, temperature_increment=0.5) == [("b", 0.5)]
    assert transcribed(client, temperature_increment=0) == [("a", 0.0)]
    assert transcribed(client, logprob_threshold=-4.0) == [("a", 0.0)]


def test_nothing_is_retried_when_all_is_well_and_an_empty_text_is_no_segment() -> None:
    client = ScriptedClient({0.0: ("fine", -0.2)})
    assert transcribed(client) == [("fine", 0.0)]
    assert len(client.asked) == 1
    assert transcribed(ScriptedClient({0.0: (" ", -5.0)})) == []


class FailsAt(ScriptedClient):
    """Gives each piece a text of its own; the one of this number fails."""

    def __init__(self, number: int) -> None:
        super().__init__({0.0: ("", 0.0)})
        self.number = number

    def submit(self, request: Request, group: Group) -> Handle:
        number = len(self.asked)
        self.script = {0.0: AudioError(f"piece {number} is bad") if number == self.number else (f"p{number}", -0.1)}
        return super().submit(request, group)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_bad_piece_ends_its_own_file_after_the_segments_before_it(batch_size: int) -> None:
    """Of three files of several pieces each, the third piece of the second one fails."""
    options = SpeechOptions(vad=False, max_piece=1.0, batch_size=batch_size)
    request = Request("Say")
    count = sum(1 for _ in Transcription(FailsAt(0), stream_audio(speech(4.0)), request, options).pieces())  # type: ignore[arg-type]
    client = FailsAt(count + 2)
    runs = [Transcription(client, stream_audio(speech(4.0)), request, options) for _ in range(3)]  # type: ignore[arg-type]
    events: list[list[str]] = [[] for _ in runs]
    for run, event in together(iter(runs)):
        events[runs.index(run)].append(event.text if isinstance(event, Segment) else str(event.failure))
    first, second, third = events
    assert first == [*(f"p{number}" for number in range(count)), "None"]
    assert second == [f"p{count}", f"p{count + 1}", f"piece {count + 2} is bad"]
    assert (len(third), third[-1]) == (count + 1, "None")
    with pytest.raises(AudioError, match="piece 0 is bad"):
        transcribed(FailsAt(0))


def test_a_file_that_breaks_off_gives_the_segments_before_it_and_loses_nothing_else() -> None:
    def broken() -> Iterator[Waveform]:
        yield from stream_audio(speech(3.0))
        raise AudioError("the file breaks off")

    client = ScriptedClient({0.0: ("words", -0.1)})
    options = SpeechOptions(vad=False, max_piece=1.0)
    runs = [
        Transcription(client, source, Request("Say"), options)  # type: ignore[arg-type]
        for source in (broken(), stream_audio(speech(2.0)))
    ]
    events = [event for _, event in together(iter(runs))]
    ends = [str(event.failure) for event in events if isinstance(event, Ended)]
    assert ends == ["the file breaks off", "None"]
    assert len(events) >= 2 + 2 + 2


@pytest.mark.parametrize(
    "option",
    [
        {"vad_threshold": "x"},
        {"batch_size": "2"},
        {"min_silence": None},
        {"hotwords": [5]},
        {"channel": "left"},
        {"max_piece": "long"},
        {"temperature": "hot"},
    ],
    ids=str,
)
def test_a_bad_option_names_itself(tiny: Phi4MM, option: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=next(iter(option))):
        tiny.transcribe(speech(0.5), **option)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@torch.no_grad()
def test_log_probabilities_are_those_of_the_model(tiny: Phi4MM, temperature: float) -> None:
    requests = [
        Request.make("Say", audios=[speech(seconds)], max_new_tokens=size, temperature=temperature, seed=1)
        for seconds, size in ((0.5, 6), (0.9, 9))
    ]
    for request, reply in zip(requests, tiny.chat_batch(requests), strict=True):
        row = tiny.processor.row(request)
        assert len(reply.token_ids) == reply.usage.new_tokens  # none of them ended by itself
        batch = tiny.processor.collate([row])
        new = tiny.model.decoder.embed_tokens(torch.tensor([reply.token_ids]))
        embeddings = torch.cat((tiny.model.embed(batch), new), dim=1)
        hidden = tiny.model.decoder(
            embeddings,
            torch.arange(embeddings.shape[1])[None],
            torch.tensor([False]),
            row_adapters([row.route.adapters], device="cpu"),
        )
        logprobs = tiny.model.decoder.logits(hidden[0, len(row.token_ids) - 1 : -1]).log_softmax(-1)
        expected = logprobs[range(len(reply.token_ids)), reply.token_ids]
        assert reply.avg_logprob == pytest.approx(float(expected.mean()), abs=1e-4)


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
    asked: list[Handle] = []
    submit = Client.submit
    monkeypatch.setattr(Client, "submit", lambda *arguments: asked.append(submit(*arguments)) or asked[-1])
    segments = bundled.transcribe_stream(file, batch_size=2)
    assert asked == []
    first = next(segments)
    assert first.text == "seven"
    assert 1 <= len(asked) <= 9  # one more than are read ahead
    assert len(list(segments)) == 9
    assert len(asked) == 10
    with pytest.raises(AudioError, match=r"gone\.wav"):
        next(bundled.transcribe_stream("gone.wav"))


def test_a_stream_that_is_closed_ends_what_was_decoded_ahead(
    bundled: Phi4MM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "long.flac"
    long_file(file, rounds=1)
    asked: list[Handle] = []
    submit = Client.submit
    monkeypatch.setattr(Client, "submit", lambda *arguments: asked.append(submit(*arguments)) or asked[-1])
    segments = bundled.transcribe_stream(file, batch_size=4)
    next(segments)
    segments.close()
    assert all(handle.done for handle in asked)


def test_memory_does_not_grow_with_the_length(bundled: Phi4MM, tmp_path: Path) -> None:
    peaks = []
    for rounds in (3, 30):
        file = tmp_path / f"{rounds}.wav"
        long_file(file, rounds)
        tracemalloc.start()
        run = Transcription(bundled._client, stream_audio(file), Request("Say"), SpeechOptions())
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


def test_a_clip_keeps_the_times_of_the_whole(bundled: Phi4MM) -> None:
    samples, rate = soundfile.read(CLIPS[1], dtype="float32")
    silence = np.zeros(int(2.0 * rate), np.float32)
    audio = (np.concatenate([samples, silence, samples]), rate)
    first, second = bundled.transcribe(audio).segments
    halfway = f"{len(samples) / rate + 1.0}"
    transcript = bundled.transcribe(audio, clip=f"{halfway}-", word_timestamps=True)
    [segment] = transcript.segments
    assert segment.text == second.text
    assert segment.start == pytest.approx(second.start, abs=0.05)
    assert segment.words
    assert segment.words[0].start >= segment.start
    assert transcript.duration == pytest.approx(len(samples) / rate + 1.0, abs=0.01)
    assert [one.text for one in bundled.transcribe(audio, clip=f"-{halfway}").segments] == [first.text]
    with pytest.raises(AudioError, match=r"audio: is .* s long; expected a clip that starts before its end"):
        bundled.transcribe(audio, clip="60-")
    with pytest.raises(PromptError, match="clip"):
        bundled.transcribe(audio, clip=5)  # type: ignore[arg-type]

"""The command line around the model: inputs, outputs, manners. The model is a stand-in that says how long a clip is."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from queue import Queue
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pysubs2
import pytest
import soundfile

from phi4mm import Reply, Request, Route, SamplingParams, Transcript, Usage, ask
from phi4mm import __main__ as ask_main
from phi4mm.asr import __main__ as asr
from phi4mm.asr import command
from phi4mm.asr.files import find_inputs
from phi4mm.asr.manual import manual
from phi4mm.asr.parser import make_parser
from phi4mm.engine.row import Group
from phi4mm.errors import AudioReadError
from phi4mm.inputs.audio import stream_audio
from phi4mm.model.config import FrontEndConfig
from phi4mm.transcription.options import SpeechOptions
from phi4mm.transcription.transcriber import Transcription

ROOT = Path(__file__).parent.parent.parent
RATE = 16000


class Answered:
    """A handle of a clip whose reply says how long it is."""

    def __init__(self, request: Request, group: Group | None = None) -> None:
        [(samples, rate)] = request.audios
        self.text = f"{len(samples) / rate:.1f} seconds"

    def __iter__(self) -> Iterator[str]:
        return iter(self.text.partition(" "))

    def result(self) -> Reply:
        return Reply(self.text, (), Route(), "stop", 0.0, Usage(1, 1))

    def when_done(self, function: Callable[[], None]) -> None:
        function()

    def cancel(self) -> None:
        pass


class StandIn:
    """What the command needs of ``Phi4MM``, and a transcription of its client; each input is one piece."""

    model = SimpleNamespace(config=SimpleNamespace(front_end=FrontEndConfig()))
    submit = Answered

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.interrupt_at = -1
        self.closed = False

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def transcribe_stream(self, audio: Any, **options: Any) -> Transcription:
        self.calls.append((audio, options))
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        waveforms = stream_audio(audio, channel=options.get("channel"))
        options = SpeechOptions(vad=False, batch_size=options["batch_size"])
        return Transcription(self, waveforms, Request("Say"), options)  # type: ignore[arg-type]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    monkeypatch.setattr(command, "load_model", lambda options: stand_in)
    yield stand_in
    assert stand_in.closed or not stand_in.calls


def write(path: Path, seconds: float, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((int(seconds * RATE), channels)), RATE)
    return path


def test_a_folder_with_bad_files(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(200):
        file = write(folder / f"{number:03}.wav", 0.1)
        if number % 20 == 7:
            file.write_bytes(b"RIFF")
    arguments = [str(folder), "--format", "json", "--output-dir", str(out), "--skip-existing", "--quiet"]
    assert asr.main(arguments) == 1
    said, told = capsys.readouterr()
    assert said == ""
    assert [f"{number:03}.wav" in line for number, line in zip(range(7, 200, 20), told.splitlines(), strict=True)] == [
        True
    ] * 10
    assert len(list(out.iterdir())) == 190
    assert Transcript.from_dict(json.loads((out / "000.json").read_text("utf-8"))).text == "0.1 seconds"

    write(folder / "007.wav", 0.2)
    (out / "100.json").unlink()
    model.calls.clear()
    assert asr.main(arguments) == 1
    done = [Path(audio).name for audio, _ in model.calls]
    assert done == ["007.wav", *(f"{number:03}.wav" for number in range(27, 200, 20) if number < 100), "100.wav"] + [
        f"{number:03}.wav" for number in range(107, 200, 20)
    ]
    assert len(list(out.iterdir())) == 191


def test_every_format_in_files_that_mirror_the_folder(model: StandIn, tmp_path: Path) -> None:
    write(tmp_path / "in" / "deep" / "a.wav", 1.0)
    write(tmp_path / "in" / "a.wav", 2.0)
    write(tmp_path / "in" / "a.flac", 2.0)
    out = tmp_path / "out"
    assert asr.main([str(tmp_path / "in"), "--recursive", "--format", "all", "--output-dir", str(out)]) == 0
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stems = ("a.wav", "a.flac", "deep/a")
    assert names == {f"{stem}.{extension}" for stem in stems for extension in ("txt", "srt", "vtt", "tsv", "json")}
    assert pysubs2.load(str(out / "deep" / "a.srt"))[0].end == 1000


def test_a_format_on_standard_output(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(tmp_path / "a.wav", 1.5))
    assert asr.main([file, "--format", "srt"]) == 0
    assert capsys.readouterr().out == "1\n00:00:00,000 --> 00:00:01,500\n1.5 seconds\n"
    assert asr.main([file, "--stream"]) == 0
    assert capsys.readouterr().out == "1.5 seconds\n"


def test_several_formats_and_names(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(write(tmp_path / "a.wav", 1.5)), str(write(tmp_path / "b.wav", 0.5))
    out = tmp_path / "out"
    assert asr.main([a, a, "--format", "srt,json", "--format", "txt", "--output-dir", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.srt", "a.txt"]
    capsys.readouterr()
    assert asr.main([a, b, a]) == 0
    assert capsys.readouterr().out == f"{a}: 1.5 seconds\n{b}: 0.5 seconds\n{a}: 1.5 seconds\n"
    assert asr.main([a, b, "--no-filename"]) == 0
    assert capsys.readouterr().out == "1.5 seconds\n0.5 seconds\n"
    odd = str(write(tmp_path / "line\nred\x1b[31m.wav", 1.5))
    assert asr.main([odd, b]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/line\\nred\\x1b[31m.wav: 1.5 seconds\n{b}: 0.5 seconds\n"
    assert asr.main([a, str(tmp_path / "gone.wav"), b, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["1.5 seconds", "", "0.5 seconds"]
    assert "there is no such file" in lines[1]["error"]


def test_a_file_whose_reading_fails_is_tried_again_after_the_others(
    model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(write(tmp_path / "a.wav", 1.5)), str(write(tmp_path / "b.wav", 0.5))
    begin, tried = model.transcribe_stream, []

    def failing(audio: Any, **options: Any) -> Transcription:
        tried.append(audio)
        if tried.count(a) > 1 or audio == b:
            return begin(audio, **options)

        def parts() -> Iterator[Any]:
            raise AudioReadError(f"{a}: cannot be read (EIO)")
            yield

        return begin(parts(), **options)

    monkeypatch.setattr(model, "transcribe_stream", failing)
    assert asr.main([a, b, "--output-dir", str(tmp_path / "out"), "--quiet"]) == 0
    assert tried == [a, b, a]
    assert (tmp_path / "out" / "a.txt").read_text() == "1.5 seconds\n"
    assert capsys.readouterr() == ("", "")


def test_channels(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(tmp_path / "a.wav", 1.0, channels=2))
    for name, channels in (("mix", [None]), ("left", [0]), ("right", [1]), ("each", [0, 1])):
        model.calls.clear()
        assert asr.main([file, "--channel", name]) == 0
        assert [options["channel"] for _, options in model.calls] == channels
    assert asr.main([file, "--channel", "each", "--output-dir", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.left.txt", "a.right.txt"]
    capsys.readouterr()
    assert asr.main([str(write(tmp_path / "mono.wav", 1.0)), "--channel", "right"]) == 1
    assert "no channel 2" in capsys.readouterr().err


def test_inputs(tmp_path: Path) -> None:
    for name in ("b.wav", "a.MP3", "notes.txt", ".hidden.wav", "deep/c.flac", "film.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*arguments: str, recursive: bool = False) -> list[str]:
        found = find_inputs([str(tmp_path / argument) for argument in arguments], recursive=recursive)
        return [str(Path(item.path).relative_to(tmp_path)) for item in found]

    assert names("") == ["a.MP3", "b.wav", "film.mkv"]
    assert names("", recursive=True) == ["a.MP3", "b.wav", "deep/c.flac", "film.mkv"]
    assert names("*.wav", "b.wav", "gone.wav") == ["b.wav", "b.wav", "gone.wav"]
    assert names("**/*.flac", "notes.txt") == ["deep/c.flac", "notes.txt"]
    (standard,) = find_inputs(["-"], recursive=False)
    assert (standard.path, str(standard.output)) == ("-", "stdin")


@pytest.mark.parametrize("channel", ["mix", "each"])
def test_standard_input(
    channel: str, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(write(tmp_path / "a.wav", 0.7)) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert asr.main(["-", "--channel", channel, "--no-filename"]) == 0
    assert capsys.readouterr().out == "0.7 seconds\n"
    (tmp_path / "page").write_bytes(b"not audio")
    with open(tmp_path / "page") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert asr.main(["-", "--channel", channel]) == 1
    assert "phi4mm.asr: standard input: is not audio" in capsys.readouterr().err


def test_interrupted(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write(tmp_path / f"{name}.wav", 0.3)) for name in "abc"]
    model.interrupt_at = 3
    assert asr.main([*files, "--output-dir", str(tmp_path / "out"), "--batch-size", "1"]) == 130
    written = {path.name: path.read_text("utf-8") for path in (tmp_path / "out").iterdir()}
    assert written == {"a.txt": "0.3 seconds\n", "b.txt": "0.3 seconds\n"}
    said, told = capsys.readouterr()
    assert said == ""
    assert told.splitlines()[1:] == ["phi4mm.asr: interrupted"]


@pytest.mark.parametrize(("module", "main"), [(command, asr.main), (ask, ask_main.main)])
def test_interrupted_while_loading(
    module: ModuleType, main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    def load(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "load_model", load)
    assert main([str(write(tmp_path / "x.wav", 0.3))]) == 130
    said, told = capsys.readouterr()
    assert said == ""
    assert len(told.splitlines()) == 1
    assert told.endswith(": interrupted\n")


def test_progress_only_on_a_terminal(
    model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path / "a.wav", 3.0))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert asr.main([file]) == 0
    assert "of 3 s of audio" in terminal.getvalue()
    assert capsys.readouterr().out == "3.0 seconds\n"
    terminal.truncate(0)
    assert asr.main([file, "--quiet"]) == 0
    assert terminal.getvalue().strip("\0") == ""


def test_options_reach_the_model_from_the_command_line_and_the_environment(
    model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write(tmp_path / "a.wav", 0.5))
    monkeypatch.setenv("PHI4MM_ASR_MAX_PIECE", "12")
    monkeypatch.setenv("PHI4MM_ASR_NO_VAD", "1")
    monkeypatch.setenv("PHI4MM_ASR_LOGPROB_THRESHOLD", "-2")
    monkeypatch.setenv("PHI4MM_ASR_JSON", "0")
    assert asr.main([file, "--logprob-threshold", "-3", "--hotwords", "Ada, Bob", "--to", "German"]) == 0
    _, options = model.calls[0]
    wanted = {"max_piece": 12.0, "vad": False, "logprob_threshold": -3.0, "hotwords": ["Ada", "Bob"], "to": "German"}
    assert {name: options[name] for name in wanted} == wanted
    assert options["task"] == "translate"
    monkeypatch.setenv("PHI4MM_ASR_JSON", "maybe")
    with pytest.raises(SystemExit) as caught:
        asr.main([file])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mic", "x.wav"],
        ["x.wav", "--format", "all"],
        ["x.wav", "--format", "srt,json"],
        ["x.wav", "y.wav", "--format", "srt"],
        ["x.wav", "--format", "srt", "--channel", "each"],
        ["x.wav", "--format", "doc"],
        ["x.wav", "--threads", "0"],
        ["x.wav", "--threads", "two"],
        ["x.wav", "--threads", "99999"],
        ["-", "-"],
        ["x.wav", "--skip-existing"],
        ["x.wav", "--json", "--stream"],
        ["x.wav", "--line-count", "0"],
        ["x.wav", "--max-piece", "0"],
        ["x.wav", "--temperature", "-1"],
        ["x.wav", "--prompt", ""],
        ["x.wav", "--to", "German", "--word-timestamps"],
        ["x.wav", "y/x.wav", "--output-dir", "out"],
        ["tests/asr", "--quiet"],
    ],
)
def test_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        asr.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_defaults_are_those_of_the_library() -> None:
    options, defaults = vars(make_parser().parse_args([])), SpeechOptions()
    for field in fields(SpeechOptions):
        assert options.get(field.name) in (None, getattr(defaults, field.name)) or field.name == "channel"
    assert options["max_new_tokens"] == SamplingParams().max_new_tokens
    assert options["temperature"] == SamplingParams().temperature


def test_the_manual_is_that_of_the_parser() -> None:
    assert (ROOT / "docs" / "asr.md").read_text("utf-8") == manual()


def test_completion(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert asr.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--max-piece" in script
    assert [line.split()[-1] for line in script.splitlines() if line.startswith("complete ")] == ["phi4mm-asr"]


def test_a_microphone_without_its_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finder:
        def find_spec(self, name: str, *others: Any) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert asr.main(["--mic"]) == 1
    assert "apt install libportaudio2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    assert asr.main(["--mic"]) == 1
    assert "pip install '.[mic]'" in capsys.readouterr().err


def test_microphone(model: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class InputStream:
        """Records two tenths of a second at once; then Ctrl-C is pressed."""

        def __init__(self, *, callback: Any, blocksize: int, **options: Any) -> None:
            self.record = lambda: callback(np.zeros((blocksize, 1), np.float32), blocksize, None, None)

        def __enter__(self) -> None:
            self.record()
            self.record()

        def __exit__(self, *error: object) -> None:
            pass

    class Interrupted(Queue[Any]):
        def get(self, *arguments: Any) -> Any:
            if self.empty():
                signal.raise_signal(signal.SIGINT)
            return super().get()

    from phi4mm.asr import microphone

    fake = ModuleType("sounddevice")
    fake.InputStream, fake.PortAudioError = InputStream, RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(microphone, "SimpleQueue", Interrupted)
    assert asr.main(["--mic"]) == 0
    assert capsys.readouterr().out == "0.2 seconds\n"


def test_a_choice_of_track(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asr.main(["--track", "2", str(write(tmp_path / "a.wav", 0.1))]) == 0
    assert [options["track"] for _, options in model.calls] == [1]
    for bad in ("0", "-1", "two"):
        with pytest.raises(SystemExit, match="2"):
            asr.main([f"--track={bad}", str(tmp_path / "a.wav")])
        assert "is not a track's number" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        asr.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("phi4mm.asr ")


def test_a_name_with_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asr.main([str(tmp_path / "a\x1b[31m\x07b.wav")]) == 1
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "a\\x1b[31m\\x07b.wav" in told


def test_an_empty_output_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        asr.main(["x.wav", "--output-dir", ""])
    assert usage.value.code == 2
    assert "--output-dir is empty" in capsys.readouterr().err

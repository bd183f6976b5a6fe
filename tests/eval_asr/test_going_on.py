"""A run that is started again: what failed is tried again, references are those of now, and what is in part says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval_asr import run as run_module
from eval_asr.__main__ import main
from eval_asr.backends import BackendOptions, Recogniser, one_by_one
from eval_asr.backends.phi4mm import Phi4MMRecogniser
from eval_asr.clips import Clip
from eval_asr.recognise import LazyRecogniser, LoadedClip, recognise
from eval_asr.records import read_settings
from eval_asr.results import Row, RowWriter, read_rows
from eval_asr.run import RunOptions, RunSummary, run_set
from eval_asr.score import score_folder
from eval_asr.sources import open_source
from phi4mm.errors import AudioReadError, BatchError, PromptError
from phi4mm.types import Transcript
from tests.eval_asr.fakes import ToneRecogniser, tone, write_corpus

OPTIONS = RunOptions(batch_size=3, progress=False)
NAME = "MODEL_phi4mm-bundled_DATASET_corpus__test.jsonl"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def run(corpus: Path, manifest: Path, recogniser: Recogniser | None = None) -> RunSummary:
    lazy = LazyRecogniser(lambda: recogniser or ToneRecogniser(), warmup=0)
    return run_set(lazy, open_source(str(corpus)), manifest, OPTIONS)


def rename(corpus: Path, old: str, new: str) -> None:
    corpus.write_text(corpus.read_text("utf-8").replace(old, new), "utf-8")


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> list[ToneRecogniser]:
    """What the command line loads, instead of a model."""
    loaded: list[ToneRecogniser] = []

    def load(_: BackendOptions) -> ToneRecogniser:
        loaded.append(ToneRecogniser())
        return loaded[-1]

    monkeypatch.setattr("eval_asr.command.load_recogniser", load)
    return loaded


def test_clips_that_failed_are_tried_again(corpus: Path, tmp_path: Path) -> None:
    alone, manifest = tmp_path / "alone.jsonl", tmp_path / "rows.jsonl"
    run(corpus, alone)
    (corpus.parent / "clip3.wav").rename(corpus.parent / "away.wav")
    first = run(corpus, manifest)
    assert first.num_failed == 1
    assert run(corpus, manifest).num_failed == 1  # again, and it failed again
    assert len(read_rows(manifest)) == 12
    (corpus.parent / "away.wav").rename(corpus.parent / "clip3.wav")
    summary = run(corpus, manifest)
    assert (summary.num_rows, summary.num_kept, summary.num_retried, summary.num_failed) == (12, 11, 1, 0)
    names = [[(row.audio_filepath, row.error) for row in read_rows(path)] for path in (alone, manifest)]
    assert names[0] == names[1]  # in the order of a run left alone
    assert "11 were there; 1 tried again after a failure" in summary.sentence()


def test_a_row_with_an_error_gives_way_to_a_later_one(tmp_path: Path) -> None:
    """As in a file whose run was killed before its end."""
    bad, good = Row("a", 1.0, 0.0, "x", "", "failed"), Row("a", 1.0, 1.0, "x", "x")
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        for row in (bad, Row("b", 1.0, 1.0, "y", "y"), bad, good):
            writer.append(row)
    assert read_rows(tmp_path / "rows.jsonl") == [Row("b", 1.0, 1.0, "y", "y"), good]
    with RowWriter(tmp_path / "rows.jsonl") as writer:
        writer.rewrite([good])
        writer.append(bad)
    assert (tmp_path / "rows.jsonl").read_text("utf-8").count("\n") == 2


def test_a_disk_that_fails_in_the_middle_is_read_again_later(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, tries = Clip.load, list[str]()

    def failing(clip: Clip, rate: int) -> Any:
        tries.append(clip.audio_filepath)
        if clip.audio_filepath in ("clip2.wav", "clip4.wav") and tries.count(clip.audio_filepath) == 1:
            raise AudioReadError(f"{clip.audio_filepath}: Input/output error")
        return load(clip, rate)

    monkeypatch.setattr(Clip, "load", failing)
    monkeypatch.setattr(run_module, "RETRY_AFTER", 0.0)
    run(corpus, tmp_path / "alone.jsonl")
    summary = run(corpus, tmp_path / "rows.jsonl")
    assert summary.num_failed == 0
    assert len(tries) == 2 * 12 + 2  # two of them twice, after the others
    assert sorted(tries[12:14]) == ["clip2.wav", "clip4.wav"]
    assert [row.audio_filepath for row in read_rows(tmp_path / "rows.jsonl")] == [
        row.audio_filepath for row in read_rows(tmp_path / "alone.jsonl")
    ]


def test_time_spent_on_a_batch_that_fails_counts() -> None:
    recogniser = ToneRecogniser(seconds=0.06, fails_on="three")
    loaded = [LoadedClip(Clip(str(word), "x", b""), tone(word, 0.2), 0.2) for word in (1, 3, 4)]
    rows = recognise(recogniser, loaded, "en")
    assert [row.error is None for row in rows] == [True, False, True]
    assert recogniser.batches == [3, 1, 1, 1]
    for row in rows:
        assert 0.06 / 3 + 0.06 <= row.time < 0.2


def test_one_clips_error_leaves_its_batch_in_peace() -> None:
    class Model:
        def transcribe_batch(self, audios: list[Any], **_: Any) -> list[Transcript]:
            calls.append(len(audios))
            texts = [None if len(samples) == 1600 else Transcript("good", (), 1.0) for samples, _ in audios]
            errors = {index: PromptError("too long") for index, text in enumerate(texts) if text is None}
            if errors:
                raise BatchError(texts, errors)
            return [text for text in texts if text is not None]

    calls: list[int] = []
    model: Any = Model()
    recogniser = Phi4MMRecogniser(model, BackendOptions())
    loaded = [
        LoadedClip(Clip(str(index), "x", b""), tone(1, seconds), seconds) for index, seconds in enumerate((0.2, 0.1))
    ]
    rows = recognise(recogniser, loaded, "en")
    assert [(row.pred_text, row.error) for row in rows] == [("good", None), ("", "PromptError: too long")]
    assert calls == [2]  # the good one was not recognised again


def test_one_by_one() -> None:
    def failing(clip: np.ndarray) -> str:
        if len(clip) == 1:
            raise RuntimeError("short")
        return str(len(clip))

    good, bad = one_by_one(failing, [np.zeros(2), np.zeros(1)])
    assert good == "2"
    assert isinstance(bad, RuntimeError)


def test_failed_clips_make_the_exit_code_1(
    corpus: Path, tmp_path: Path, tones: list[ToneRecogniser], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--data", str(corpus), "--out", str(tmp_path / "out"), "--quiet", "--warmup", "0"]
    (corpus.parent / "clip3.wav").rename(corpus.parent / "away.wav")
    assert main(command) == 1
    assert capsys.readouterr().err == "eval_asr: 1 clip failed; the same command tries again\n"
    (corpus.parent / "away.wav").rename(corpus.parent / "clip3.wav")
    assert main(command) == 0
    assert main(command) == 0
    assert len(tones) == 2  # the third run had nothing to do


def test_a_changed_reference_is_noticed(
    corpus: Path, tmp_path: Path, tones: list[ToneRecogniser], capsys: pytest.CaptureFixture[str]
) -> None:
    """By scoring, which takes the new text, and by a run that goes on, which writes it."""
    out = tmp_path / "out"
    command = ["run", "--data", str(corpus), "--out", str(out), "--quiet", "--warmup", "0"]
    assert main(command) == 0
    [before] = score_folder(out)
    old = json.loads(corpus.read_text("utf-8").splitlines()[0])["text"]
    rename(corpus, old, "wholly different words here")
    capsys.readouterr()
    assert main(["score", str(out)]) == 0
    assert f"1 clip has a new reference in {corpus}; scored with that" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="new reference"):
        [after] = score_folder(out)
    assert after.errors.reference_words == before.errors.reference_words + 1
    assert main(command) == 0
    assert "12 were there; 1 with a new reference" in capsys.readouterr().out
    assert len(tones) == 1
    [again] = score_folder(out)
    assert again.rows == after.rows


def test_a_run_in_part_says_so(
    corpus: Path, tmp_path: Path, tones: list[ToneRecogniser], capsys: pytest.CaptureFixture[str]
) -> None:
    out, limited = tmp_path / "out", tmp_path / "limited"
    command = ["run", "--data", str(corpus), "--quiet", "--warmup", "0", "--batch-size", "3"]
    assert main([*command, "--out", str(out)]) == 0
    [score] = score_folder(out)
    assert score.part == ""
    lines = (out / NAME).read_text("utf-8").splitlines(keepends=True)
    (out / NAME).write_text("".join(lines[:5]) + lines[5][:9], "utf-8")  # as kill -9 leaves it
    [score] = score_folder(out)
    assert score.part == "5 of 12 clips, not finished"
    assert main([*command, "--out", str(limited), "--limit", "7"]) == 0
    [score] = score_folder(limited)
    assert score.part == "7 of 12 clips"
    capsys.readouterr()
    for arguments in (["score", str(out)], ["compare", str(out), str(limited)]):
        assert main(arguments) == 0
        assert "NOT THE WHOLE SET" in (printed := capsys.readouterr().out)
        assert "5 of 12 clips, not finished" in printed
    files = [tmp_path / "page.html", tmp_path / "table.md"]
    assert main(["report", str(out), "--out", str(files[0]), "--markdown", str(files[1])]) == 0
    assert "Not whole sets: corpus test (5 of 12 clips, not finished)" in files[0].read_text("utf-8")
    assert "corpus test (5 of 12 clips, not finished)" in files[1].read_text("utf-8")
    corpus.write_text(corpus.read_text("utf-8") + '{"audio_filepath": "new.wav", "text": "more"}\n', "utf-8")
    assert main([*command, "--out", str(out)]) == 1  # there is no such file
    assert [score.part for score in score_folder(out)] == [""]
    assert [score.part for score in score_folder(limited)] == ["7 of 13 clips"]


def test_a_streamed_set_is_known_to_be_whole_at_its_end_alone(tmp_path: Path) -> None:
    from dataclasses import replace

    from eval_asr.settings import prepare_settings, record_end

    source = replace(open_source(str(write_corpus(tmp_path / "corpus"))), streamed=True, location=None)
    manifest = tmp_path / NAME
    prepare_settings(manifest, source, BackendOptions(), OPTIONS)
    settings = read_settings(manifest)
    assert settings is not None
    assert settings.part_done(4) == "4 clips, not finished"
    summary = run_set(LazyRecogniser(ToneRecogniser, 0), source, manifest, OPTIONS)
    record_end(manifest, summary.timing, summary.num_rows)
    settings = read_settings(manifest)
    assert settings is not None
    assert settings.part_done(12) == ""
    prepare_settings(manifest, source, BackendOptions(), OPTIONS)  # a run that goes on does not forget it
    settings = read_settings(manifest)
    assert settings is not None
    assert settings.part_done(12) == ""
    assert settings.part_done(11) == "11 of 12 clips, not finished"


def test_nothing_is_recognised_where_a_later_corpus_cannot_go_on(
    corpus: Path, tmp_path: Path, tones: list[ToneRecogniser]
) -> None:
    other = write_corpus(tmp_path / "other", 3)
    out = ["--out", str(tmp_path / "out"), "--quiet", "--warmup", "0"]
    assert main(["run", "--data", str(other), *out, "--batch-size", "2"]) == 0
    assert main(["run", "--data", str(corpus), "--data", str(other), *out]) == 1
    assert len(tones) == 1


def test_names_that_are_not_utf8(tmp_path: Path, tones: list[ToneRecogniser]) -> None:
    """Folders' names are bytes; results and reports are text."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    corpus = folder / write_corpus(tmp_path / "plain", 2, durations=False).name
    (tmp_path / "plain").rename(folder)
    out = tmp_path / "out"
    assert main(["run", "--data", str(corpus), "--out", str(out), "--quiet", "--warmup", "0"]) == 0
    [score] = score_folder(out)
    assert score.name.path == "caf\\xe9"
    assert main(["report", str(out), "--out", str(tmp_path / "page.html"), "--markdown", str(tmp_path / "m.md")]) == 0
    assert "caf%E9/clip0.wav" in (tmp_path / "page.html").read_text("utf-8")


def test_results_names_have_a_length(
    tmp_path: Path, tones: list[ToneRecogniser], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / ("y" * 200), 2)
    assert main(["run", "--data", str(corpus), "--out", str(tmp_path / "out"), "--quiet"]) == 1
    assert "at most 220 are possible" in capsys.readouterr().err
    assert not tones


@pytest.mark.parametrize("content", ["[]", '"x"', "{", "[" * 100_000, '{"options": 3}', '{"num_clips": "3"}'])
def test_damaged_settings_are_one_short_line(
    corpus: Path, tmp_path: Path, tones: list[ToneRecogniser], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    out = tmp_path / "out"
    command = ["run", "--data", str(corpus), "--out", str(out), "--quiet", "--warmup", "0"]
    assert main(command) == 0
    (out / NAME).with_suffix(".run.json").write_text(content, "utf-8")
    capsys.readouterr()
    for arguments in (["score", str(out)], command):
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert "run.json: is damaged" in message
        assert message.count("\n") == 1
        assert len(message) < 500


@pytest.mark.parametrize(
    "value",
    ['"duration": "2"', '"duration": NaN', f'"time": {"9" * 400}', f'"time": {"9" * 5000}', '"text": "\\ud83c"'],
)
def test_damaged_rows_are_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    line = '{"audio_filepath": "a", "text": "x", "pred_text": "x", ' + value + "}"
    (tmp_path / NAME).write_text(line + "\n", "utf-8")
    assert main(["score", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"{NAME}: line 1 " in message
    assert message.count("\n") == 1
    assert len(message) < 500


def test_what_a_killed_run_was_writing_is_cleared_away(corpus: Path, tmp_path: Path) -> None:
    left = tmp_path / f".{NAME.removesuffix('.jsonl')}.123.jsonl"
    left.write_text("half", "utf-8")
    run(corpus, tmp_path / NAME)
    assert not left.exists()

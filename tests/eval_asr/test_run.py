"""Runs, and what can stop them: kills, full disks, unreadable clips, a second run."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import random
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from eval_asr.__main__ import main
from eval_asr.backends import BackendOptions, Recogniser
from eval_asr.clips import Clip
from eval_asr.errors import ResultsError
from eval_asr.progress import RunningScore
from eval_asr.recognise import LazyRecogniser
from eval_asr.records import Timing, read_settings
from eval_asr.results import Row, RowWriter, locked, read_rows
from eval_asr.run import RunOptions, RunSummary, in_batches, run_set, select
from eval_asr.settings import prepare_settings, record_end
from eval_asr.sources import open_source
from phi4mm.api import Phi4MM
from phi4mm.checkpoint import save_checkpoint
from phi4mm.model.phi4mm import Phi4MMModel
from tests.eval_asr.fakes import ToneRecogniser, write_corpus

OPTIONS = RunOptions(batch_size=3, progress=False)
NAME = "MODEL_tones_DATASET_corpus__test.jsonl"


def run(
    corpus: Path, out: Path, recogniser: Recogniser | None = None, options: RunOptions = OPTIONS, warmup: int = 0
) -> RunSummary:
    with locked(out), LazyRecogniser(lambda: recogniser or ToneRecogniser(), warmup) as lazy:
        return run_set(lazy, open_source(str(corpus)), out / NAME, options)


def untimed(manifest: Path) -> list[str]:
    return [replace(row, time=0.0).to_json() for row in read_rows(manifest)]


def child(target: Callable[..., Any], *arguments: Any) -> Any:
    """A process of its own, forked so that it need not import anything again."""

    def alone() -> None:
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forks: it would die locked with this one
        target(*arguments)

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    return process


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def test_rows_are_the_leaderboards(corpus: Path, tmp_path: Path) -> None:
    summary = run(corpus, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / NAME).read_text("utf-8").splitlines()]
    assert [list(line) for line in lines] == [["audio_filepath", "duration", "time", "text", "pred_text"]] * 12
    given = {row["audio_filepath"]: row for row in map(json.loads, corpus.read_text("utf-8").splitlines())}
    for line in lines:
        said = given[line["audio_filepath"]]
        assert line["text"] == said["text"]
        assert line["pred_text"].split()[0] == said["text"].split()[0]
        assert line["duration"] == pytest.approx(said["duration"], abs=1e-4)
    durations = [line["duration"] for line in lines]
    assert durations == sorted(durations, reverse=True)
    assert summary.num_rows == 12
    assert summary.num_failed == 0


def test_time_is_shared_and_counts_transcription_alone(corpus: Path, tmp_path: Path) -> None:
    recogniser = ToneRecogniser(seconds=0.06)
    summary = run(corpus, tmp_path / "out", recogniser, warmup=2)
    rows = read_rows(tmp_path / "out" / NAME)
    assert recogniser.batches == [3] * 6  # two to warm up, four on the clock
    for start in range(0, 12, 3):
        assert len({row.time for row in rows[start : start + 3]}) == 1
    assert 4 * 0.06 <= summary.transcription_seconds < 4 * 0.06 + 0.2
    assert summary.transcription_seconds == pytest.approx(sum(row.time for row in rows))


def test_where_a_runs_time_goes(corpus: Path, tmp_path: Path) -> None:
    """Loading and warm-up apart; the rest is recognising, or the harness's own."""
    recogniser = ToneRecogniser(seconds=0.05)

    def load_slowly() -> ToneRecogniser:
        time.sleep(0.3)
        return recogniser

    manifest = tmp_path / "rows.jsonl"
    timing = run_set(LazyRecogniser(load_slowly, 2), open_source(str(corpus)), manifest, OPTIONS).timing
    assert timing.loading_seconds is not None
    assert timing.recognising_seconds is not None
    assert timing.loading_seconds >= 0.3 + 2 * 0.05
    assert timing.recognising_seconds >= 4 * 0.05
    assert timing.loading_seconds + timing.recognising_seconds <= timing.wall_seconds + 0.002
    assert Timing(10.0, 6.0, 3.0).overhead == 0.25
    assert Timing(10.0, 6.0, 3.0).sentence().endswith("overhead 25.0 % of the time after loading")
    assert Timing(10.0, None, None).overhead is None  # on workers elsewhere
    nothing_left = run_set(LazyRecogniser(load_slowly, 2), open_source(str(corpus)), manifest, OPTIONS)
    assert nothing_left.timing.overhead is None
    assert recogniser.batches == [3] * 6


def test_the_next_batch_is_read_while_one_is_recognised(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recogniser will not give out its first batch before a clip of the second one was read."""
    load, reads, second = Clip.load, itertools.count(1), threading.Event()

    def watched_load(clip: Clip, rate: int) -> Any:
        if next(reads) > OPTIONS.batch_size:
            second.set()
        return load(clip, rate)

    class Waiting(ToneRecogniser):
        def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
            assert second.wait(60)
            return super().transcribe(clips, language)

    monkeypatch.setattr(Clip, "load", watched_load)
    assert run(corpus, tmp_path / "out", Waiting()).num_failed == 0


def test_clips_come_at_the_recognisers_own_rate(corpus: Path, tmp_path: Path) -> None:
    class Low(ToneRecogniser):
        sampling_rate = 8000

        def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
            return [str(len(clip)) for clip in clips]

    run(corpus, tmp_path / "out", Low())
    for row in read_rows(tmp_path / "out" / NAME):
        assert int(row.pred_text) == pytest.approx(8000 * row.duration, abs=1)


def test_progress_says_how_things_stand(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(corpus, tmp_path / "out", options=replace(OPTIONS, progress=True))
    shown = capsys.readouterr().err
    assert "12/12" in shown
    running = RunningScore("en").after(read_rows(tmp_path / "out" / NAME))
    assert shown.rstrip().endswith(f"{running}]")
    assert summary.num_rows == 12


def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """Moments are drawn in bytes written, and some milliseconds more, so that a busy machine changes nothing."""
    corpus = write_corpus(tmp_path / "corpus", 120)
    run(corpus, tmp_path / "alone")
    out = tmp_path / "out"
    moments = random.Random(1)
    size = 0
    for _ in range(10):
        process = child(run, corpus, out, ToneRecogniser(seconds=0.05))
        wanted = size + moments.randrange(700)
        while size < wanted and process.is_alive():
            time.sleep(0.001)
            size = (out / NAME).stat().st_size if (out / NAME).exists() else 0
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9  # killed in the middle, not done
    kept = len(read_rows(out / NAME))
    assert 0 < kept < 120
    assert run(corpus, out).num_kept == kept
    assert untimed(out / NAME) == untimed(tmp_path / "alone" / NAME)


def test_cut_anywhere(corpus: Path, tmp_path: Path) -> None:
    """Whatever byte a file ends at, the run goes on to the same rows."""
    manifest = tmp_path / "out" / NAME
    run(corpus, tmp_path / "out")
    whole, content = untimed(manifest), manifest.read_bytes()
    line = content.index(b"\n") + 1
    for end in [*range(0, line + 8, 7), line - 1, line, len(content) - 1, len(content)]:
        manifest.write_bytes(content[:end])
        summary = run(corpus, tmp_path / "out")
        assert summary.num_kept == content[:end].count(b"\n")
        assert untimed(manifest) == whole, end


def test_nothing_left_loads_no_model(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")

    def no_model() -> ToneRecogniser:
        raise AssertionError("the model was loaded")

    lazy = LazyRecogniser(no_model, warmup=2)
    assert run_set(lazy, open_source(str(corpus)), tmp_path / "out" / NAME, OPTIONS).num_kept == 12


def test_eight_corpora_share_one_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading (100 s on a made-up clock) and warm-up (1 s a batch) count once, in the corpus that needed them."""
    now, loaded = [0.0], list[ToneRecogniser]()

    class Ticking(ToneRecogniser):
        def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
            now[0] += 1.0
            return super().transcribe(clips, language)

    def load(_: BackendOptions) -> ToneRecogniser:
        now[0] += 100.0
        loaded.append(Ticking())
        return loaded[-1]

    def timings() -> list[tuple[float | None, float | None]]:
        sessions = [settings.sessions[-1] for settings in map(read_settings, manifests) if settings is not None]
        return [(one.timing.loading_seconds, one.timing.recognising_seconds) for one in sessions if one.timing]

    made_up = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("eval_asr.recognise.time", made_up)
    monkeypatch.setattr("eval_asr.run.time", made_up)
    monkeypatch.setattr("eval_asr.command.load_recogniser", load)
    names = [f"set{number}" for number in range(8)]
    manifests = [tmp_path / "out" / f"MODEL_phi4mm-bundled_DATASET_{name}__test.jsonl" for name in names]
    data = [argument for name in names for argument in ("--data", str(write_corpus(tmp_path / name, 4)))]
    command = ["run", *data, "--out", str(tmp_path / "out"), "--batch-size", "2", "--warmup", "3", "--quiet"]

    assert main(command) == 0
    [recogniser] = loaded
    assert recogniser.batches == [2] * (3 + 8 * 2)
    assert recogniser.closed
    assert timings() == [(103.0, 2.0)] + [(0.0, 2.0)] * 7
    assert {row.time for manifest in manifests for row in read_rows(manifest)} == {0.5}

    assert main(command) == 0
    assert len(loaded) == 1  # nothing was left to do

    manifests[5].unlink()
    assert main(command) == 0
    assert len(loaded) == 2
    assert timings() == [(103.0, 2.0) if number == 5 else (0.0, 0.0) for number in range(8)]


def test_full_disk(corpus: Path, tmp_path: Path) -> None:
    def run_with_little_room(messages: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
        try:
            run(corpus, tmp_path / "out")
        except ResultsError as error:
            messages.send(str(error))

    receiver, sender = multiprocessing.Pipe()
    process = child(run_with_little_room, sender)
    process.join()
    message = receiver.recv()
    content = (tmp_path / "out" / NAME).read_bytes()
    kept = content.count(b"\n")
    assert content.endswith(b"\n")
    assert 0 < kept < 12
    assert NAME in message
    assert f"{kept} rows are kept" in message
    assert "make room and run the same command again" in message
    run(corpus, tmp_path / "out")
    run(corpus, tmp_path / "alone")
    assert untimed(tmp_path / "out" / NAME) == untimed(tmp_path / "alone" / NAME)


def test_settings_that_cannot_be_written_leave_the_old_ones(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / NAME
    prepare_settings(manifest, open_source(str(corpus)), BackendOptions(), OPTIONS)
    before = read_settings(manifest)

    def full_disk(path: Path, text: str, *_: object) -> int:
        path.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(ResultsError, match=r"run\.json: cannot be written \(No space left on device\); make room"):
        record_end(manifest, Timing(1.0, 0.5, 0.4), 12)
    assert read_settings(manifest) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["corpus", NAME.replace(".jsonl", ".run.json")])


def test_clips_that_cannot_be_read_or_recognised(corpus: Path, tmp_path: Path) -> None:
    (corpus.parent / "clip3.wav").unlink()
    (corpus.parent / "clip5.wav").write_bytes(b"RIFF")
    summary = run(corpus, tmp_path / "out", ToneRecogniser(fails_on="seven"))
    rows = {row.audio_filepath: row for row in read_rows(tmp_path / "out" / NAME)}
    assert len(rows) == 12
    assert "clip3.wav" in str(rows["clip3.wav"].error)
    assert "no such file" in str(rows["clip3.wav"].error)
    assert "clip5.wav" in str(rows["clip5.wav"].error)
    for name, row in rows.items():
        if name not in ("clip3.wav", "clip5.wav"):
            expected = "RuntimeError: cannot stand seven" if row.text.startswith("seven") else None
            assert row.error == expected
            assert (row.pred_text == "") == (expected is not None)
    assert f"with an error (the first: {summary.first_error})" in summary.sentence()
    assert summary.num_failed == sum(row.error is not None for row in rows.values()) > 2


def test_second_run_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = child(run, corpus, tmp_path / "out", ToneRecogniser(seconds=0.5))
    while not (tmp_path / "out" / NAME).exists():
        time.sleep(0.01)
    code = main(["run", "--data", str(corpus), "--out", str(tmp_path / "out")])
    assert process.is_alive()
    process.kill()
    process.join()
    assert code == 1
    assert "another run is writing here" in capsys.readouterr().err
    with locked(tmp_path / "out"):  # free again, though it was killed
        pass


def test_other_options_or_corpus_are_refused(corpus: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "out" / NAME
    source, backend = open_source(str(corpus)), BackendOptions()
    (tmp_path / "out").mkdir()
    prepare_settings(manifest, source, backend, replace(OPTIONS, batch_size=9))  # of a run that wrote no row
    for _ in range(2):
        prepare_settings(manifest, source, backend, OPTIONS)
        run(corpus, tmp_path / "out")
    settings = read_settings(manifest)
    assert settings is not None
    assert len(settings.sessions) == 2
    assert settings.audio_root == str(corpus.parent)
    assert settings.sessions[0].versions["torch"]
    with pytest.raises(ResultsError, match="made with batch_size 3, not 4"):
        prepare_settings(manifest, source, backend, replace(OPTIONS, batch_size=4))
    with pytest.raises(ResultsError, match="made with prompt None, not 'Write'"):
        prepare_settings(manifest, source, replace(backend, prompt="Write"), OPTIONS)
    with pytest.raises(ResultsError, match="another corpus"):
        run(write_corpus(tmp_path / "other" / "corpus", 4), tmp_path / "out")


def test_a_damaged_line_is_named(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    manifest = tmp_path / "out" / NAME
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    manifest.write_text("".join([*lines[:2], "{broken}\n", *lines[2:]]), "utf-8")
    with pytest.raises(ResultsError, match="line 3 is not JSON"):
        run(corpus, tmp_path / "out")


def test_limit_and_seed() -> None:
    clips = [Clip(str(index), "", b"") for index in range(50)]
    assert select(clips, 3, None) == clips[:3]
    assert select(iter(clips), 3, 7) == select(clips, 3, 7) != clips[:3]
    assert select(clips, 3, 8) != select(clips, 3, 7)
    assert select(clips, 99, 7) == clips
    drawn = [clip.audio_filepath for seed in range(400) for clip in select(clips, 10, seed)]
    assert min(drawn.count(str(index)) for index in range(50)) > 40  # 80 are expected of each


def test_batches_are_sorted_whole_or_in_windows() -> None:
    clips = [Clip(str(index), "", b"", seconds=float(index)) for index in range(100)]
    whole = [clip.seconds for batch in in_batches(clips, 2) for clip in batch]
    assert whole == sorted(whole, key=lambda seconds: -float(seconds or 0))
    windows = [clip.seconds for batch in in_batches(iter(clips), 2, windowed=True) for clip in batch]
    assert windows == [*range(63, -1, -1), *range(99, 63, -1)]


def test_lengths_are_read_where_the_corpus_does_not_say(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / name / "corpus", durations=given) for name, given in (("a", True), ("b", False))]
    for corpus in corpora:
        run(corpus, corpus.parent / "out")
    assert untimed(corpora[0].parent / "out" / NAME) == untimed(corpora[1].parent / "out" / NAME)


def test_rows_survive_their_json(tmp_path: Path) -> None:
    awkward = ["a\nb", "\u2028 \x85 \x1c", '"\\', "हिन्दी 中文 🎧", ""]
    rows = [Row(f"{index}", 1.5, 0.25, text, text[::-1]) for index, text in enumerate(awkward)]
    rows += [Row("e", 0.0, 0.0, "x", "", "bad"), Row("c", 1.0, 1.0, "x", "y", None, "parent", 0)]
    for _ in range(2):  # opened again, it goes on
        with RowWriter(tmp_path / "rows.jsonl") as writer:
            for row in rows[len(writer.rows) :]:
                writer.append(row)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_command_line_on_a_real_model(
    corpus: Path, tmp_path: Path, tiny_model: Phi4MMModel, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are what ``Phi4MM.transcribe_batch`` returns for each clip alone."""
    save_checkpoint(tiny_model, tmp_path / "tiny", tokenizer_file=tokenizer_file)
    out = tmp_path / "out"
    command = ["run", "--model", str(tmp_path / "tiny"), "--data", str(corpus), "--out", str(out), "--limit", "5"]
    assert main([*command, "--batch-size", "2", "--max-new-tokens", "6", "--warmup", "0", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "5 rows, RTFx" in printed
    settings = read_settings(out / "MODEL_tiny_DATASET_corpus__test.jsonl")
    assert settings is not None
    timing = settings.sessions[0].timing
    assert timing is not None
    assert timing.sentence() in printed
    rows = read_rows(out / "MODEL_tiny_DATASET_corpus__test.jsonl")
    assert sorted(row.audio_filepath for row in rows) == [f"clip{index}.wav" for index in range(5)]
    model = Phi4MM(tiny_model, tokenizer_file)
    for row in rows:
        assert row.error is None
        clip = corpus.parent / row.audio_filepath
        [alone] = model.transcribe_batch([clip], prompt="Transcribe the audio clip into text.", max_new_tokens=6)
        assert row.pred_text == alone.text
    assert main(["score", str(out)]) == 0
    table = capsys.readouterr().out
    assert "scored by the rules classic" in table
    assert "corpus test" in table
    assert main([*command, "--batch-size", "4"]) == 1
    assert "made with max_new_tokens 6, not 512" in capsys.readouterr().err

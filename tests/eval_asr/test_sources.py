"""Corpora of each kind, read right, and their faults reported in one line."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from eval_asr.clips import Clip, Source
from eval_asr.errors import SourceError
from eval_asr.hub import CHUNKED
from eval_asr.recognise import LazyRecogniser
from eval_asr.results import read_rows
from eval_asr.run import RunOptions, check_distinct, run_set
from eval_asr.sources import language_of, open_source
from eval_asr.suites import SUITES, suite
from phi4mm.errors import AudioError
from tests.eval_asr.fakes import RATE, ToneRecogniser, tone, write_corpus


def clips_of(source: Source) -> list[Clip]:
    return list(source.open_clips())


def test_manifest(tmp_path: Path) -> None:
    source = open_source(str(write_corpus(tmp_path / "corpus", 3)))
    assert (source.path, source.name, source.split, source.language) == ("corpus", "", "test", "en")
    clips = clips_of(source)
    assert [clip.audio_filepath for clip in clips] == ["clip0.wav", "clip1.wav", "clip2.wav"]
    samples, duration = clips[0].load(RATE)
    assert duration == len(samples) / RATE == clips[0].seconds
    resampled, _ = clips[0].load(8000)
    assert len(resampled) == len(samples) // 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is a list"),
        ('{"text": "a"}', "has no string 'audio_filepath'"),
        ('{"audio_filepath": "a.wav"}', "has no string 'text'"),
        ('{"audio_filepath": "", "text": "a"}', "empty 'audio_filepath'"),
        ('{"audio_filepath": "a.wav", "text": "\\ud83c"}', "half a surrogate pair"),
        ('{"audio_filepath": "a.wav", "text": "a", "duration": "long"}', "'duration' 'long'"),
        ('{"audio_filepath": "a.wav", "text": "a", "parent_id": "p"}', "'parent_id'"),
    ],
)
def test_bad_manifest_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    manifest = write_corpus(tmp_path / "corpus", 2)
    manifest.write_text(manifest.read_text("utf-8") + "\n" + line + "\n", "utf-8")
    with pytest.raises(SourceError, match=f"line 4 .*{words}") as caught:
        open_source(str(manifest))
    assert "\n" not in str(caught.value)


def nemo(folder: Path, *lines: dict[str, Any], ending: str = "\n", mark: bytes = b"") -> list[Clip]:
    """The clips of a manifest."""
    folder.mkdir(exist_ok=True)
    text = ending.join(json.dumps(line) for line in lines) + ending
    (folder / "nemo.json").write_bytes(mark + text.encode("utf-8"))
    return clips_of(open_source(str(folder / "nemo.json")))


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """One file of ten seconds: the pitch of second n is that of word n."""
    file = tmp_path / "steps.flac"
    soundfile.write(file, np.concatenate([tone(index % 8, 1.0) for index in range(10)]), RATE)
    return file


def test_nemos_offset_and_duration_cut_the_clip(steps: Path, tmp_path: Path) -> None:
    def part(offset: float, duration: float | None = None) -> dict[str, Any]:
        values = {"audio_filepath": steps.name, "text": "a", "offset": offset, "duration": duration}
        return {key: value for key, value in values.items() if value is not None}

    clips = nemo(tmp_path, part(3.0, 1.0), part(3.25, 0.5), part(9), part(0, 2.5), part(3.0, 1.0))
    assert [clip.audio_filepath for clip in clips] == [
        "steps.flac#t=3,4", "steps.flac#t=3.25,3.75", "steps.flac#t=9", "steps.flac#t=0,2.5", "steps.flac#t=3,4#2",
    ]  # fmt: skip
    samples, _ = Clip("whole", "", steps).load(RATE)
    for clip, (start, end) in zip(clips, [(3, 4), (3.25, 3.75), (9, 10), (0, 2.5), (3, 4)], strict=True):
        found, duration = clip.load(RATE)
        assert np.array_equal(found, samples[int(start * RATE) : int(end * RATE)])
        assert duration == end - start


def test_a_duration_alone_cuts_what_is_longer_by_more_than_rounding(steps: Path, tmp_path: Path) -> None:
    lines = [{"audio_filepath": "steps.flac", "text": "a", "duration": seconds} for seconds in (4.0, 9.9, 12.0)]
    assert [clip.load(RATE)[1] for clip in nemo(tmp_path, *lines)] == [4.0, 10.0, 10.0]


@pytest.mark.parametrize(("offset", "duration"), [(10.0, 1.0), (40.0, None), (9.0, 3.0)])
def test_a_part_that_the_file_has_not_is_an_error(
    steps: Path, tmp_path: Path, offset: float, duration: float | None
) -> None:
    [clip] = nemo(tmp_path, {"audio_filepath": "steps.flac", "text": "a", "offset": offset, "duration": duration})
    with pytest.raises(AudioError, match=r"is to be cut from .* s, but its file has 10\.00 s"):
        clip.load(RATE)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n", "\r\n\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_nemos_lines_end_as_any_system_ends_them(tmp_path: Path, ending: str, mark: bytes) -> None:
    lines = [{"audio_filepath": f"{index}.wav", "text": f"é\u2028{index}"} for index in range(3)]
    clips = nemo(tmp_path, *lines, ending=ending, mark=mark)
    assert [(clip.audio_filepath, clip.text) for clip in clips] == [(*line.values(),) for line in lines]


def test_nemos_files_are_found(steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the manifest or to the current folder, or absolute; so are the files of texts."""
    folder = tmp_path / "lists"
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfspoken\r\nwords\n")
    monkeypatch.chdir(tmp_path)
    for audio, text in (
        (str(steps), str(tmp_path / "text.txt")),
        ("../steps.flac", "../text.txt"),
        (steps.name, "text.txt"),
    ):
        [clip] = nemo(folder, {"audio_filepath": audio, "text_filepath": text})
        assert clip.text == "spoken words"
        assert clip.load(RATE)[1] == 10.0
    with pytest.raises(SourceError, match=r"line 1 has the 'text_filepath' 'no\.txt', which cannot be read"):
        nemo(folder, {"audio_filepath": "a.wav", "text_filepath": "no.txt"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"audio_filepath": "a.wav", "text": "caf\xe9"}', r"line 1 is not UTF-8 text \(byte 41 is 0xe9\)"),
        ('{"audio_filepath": "a.wav", "text": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8 text"),
        (b"PAR1 and so on", "is a parquet file; name its folder as .*::train"),
        (b"[" * 100_000, "line 1 is JSON that is nested too deep"),
        (b'[\n{"audio_filepath": "a.wav", "text": "a"}\n]', "all in one line"),
        (b'{"audio_filepath": "a.wav", "text": "a", "duration": true}', "'duration' 'True', expected seconds"),
        (b'{"audio_filepath": "a.wav", "text": "a", "offset": -1}', "'offset' '-1', expected seconds"),
        (b'{"audio_filepath": "a.wav", "text": "a", "offset": NaN}', "'offset' 'nan', expected seconds"),
        (b'{"audio_filepath": ["a.wav", "b.wav"], "text": "a"}', "has no string 'audio_filepath'"),
        (b"\n \n", "has no clips"),
    ],
)
def test_broken_manifests_are_one_short_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "broken.jsonl").write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(str(tmp_path / "broken.jsonl"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_linked_manifest_goes_by_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative names are read from the link's folder, and that is what the results say."""
    manifest = write_corpus(tmp_path / "corpus", 2)
    (tmp_path / "elsewhere").mkdir()
    manifest.rename(tmp_path / "elsewhere" / "lists.jsonl")
    manifest.symlink_to(tmp_path / "elsewhere" / "lists.jsonl")
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = open_source("../corpus/test.jsonl")
    assert (source.path, source.split, source.audio_root) == ("corpus", "test", tmp_path / "corpus")
    assert clips_of(source)[0].load(RATE)[1] > 0


def test_chunks_come_with_their_recording(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", 1)
    values = json.loads(manifest.read_text("utf-8")) | {"parent_id": 7, "chunk_index": 0}
    manifest.write_text(json.dumps(values), "utf-8")
    run_set(
        LazyRecogniser(ToneRecogniser, warmup=0),
        open_source(str(manifest)),
        tmp_path / "rows.jsonl",
        RunOptions(progress=False),
    )
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert (row.parent_id, row.chunk_index) == ("7", 0)


def test_librispeech_tree(tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "test-clean" / "61" / "70968"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "61-70968-0000.flac", tone(0, 0.1), RATE)
    (chapter / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n61-70968-0001 AND WENT\n", "utf-8")
    source = open_source(str(tmp_path / "LibriSpeech" / "test-clean"))
    assert (source.path, source.split) == ("LibriSpeech", "test-clean")
    first, second = clips_of(source)
    assert (first.audio_filepath, first.text) == ("61/70968/61-70968-0000.flac", "HE BEGAN")
    assert first.claimed_seconds() == 0.1
    with pytest.raises(AudioError, match="61-70968-0001"):
        second.load(RATE)
    (chapter / "61-70968.trans.txt").write_text("61-70968-0000\n", "utf-8")
    with pytest.raises(SourceError, match="line 1 has no text"):
        open_source(str(tmp_path / "LibriSpeech" / "test-clean"))


def test_folder_with_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_corpus(folder, 2)
    table = folder / "metadata.csv"
    table.write_text('file_name,speaker,transcription\nclip0.wav,a,"one, two"\nclip1.wav,b,three\n', "utf-8")
    source = open_source(str(folder))
    assert (source.path, source.split, source.audio_root) == ("corpus", "all", folder)
    assert [(clip.audio_filepath, clip.text) for clip in clips_of(source)] == [
        ("clip0.wav", "one, two"), ("clip1.wav", "three"),
    ]  # fmt: skip
    table.write_text("clip0.wav|one\n", "utf-8")
    with pytest.raises(SourceError, match="expected file_name and text"):
        open_source(str(folder))
    table.write_text("file_name,text\nclip0.wav\n", "utf-8")
    with pytest.raises(SourceError, match="line 2 lacks"):
        open_source(str(folder))


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set on disk as the hub's are: parquet with the bytes of audio files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows: dict[str, list[Any]] = {"audio": [], "id": [], "audio_length_s": [], "text": []}
    for index in range(5):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(index, (10 + index) / 100), RATE, format="flac")
        rows["audio"].append({"bytes": buffer.getvalue() if index < 4 else b"no audio", "path": f"{index}.flac"})
        rows["id"].append("same" if index < 2 else f"deep/id{index}")
        rows["audio_length_s"].append((10 + index) / 100)
        rows["text"].append(f"text {index}")
    kinds = {"audio": datasets.Audio(), "id": "string", "audio_length_s": "float64", "text": "string"}
    features = datasets.Features(
        {name: datasets.Value(kind) if isinstance(kind, str) else kind for name, kind in kinds.items()}
    )
    folder = tmp_path / "hub"
    folder.mkdir()
    parquet.write_table(pyarrow.table(rows, features.arrow_schema), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_hub(hub_folder: Path, tmp_path: Path, streaming: bool) -> None:
    source = open_source(f"{hub_folder}::test", streaming=streaming)
    assert (source.path, source.name, source.split, source.audio_root) == ("hub", "", "test", None)
    clips = clips_of(source)
    assert [clip.audio_filepath for clip in clips] == ["same", "same#2", "id2", "id3", "id4"]
    assert [clip.text for clip in clips] == [f"text {index}" for index in range(5)]
    samples, duration = clips[2].load(RATE)
    assert duration == 0.12
    assert np.abs(samples - tone(2, 0.12)).max() < 1e-3
    assert len(pickle.loads(pickle.dumps(clips[0])).load(RATE)[0]) == 1600
    summary = run_set(
        LazyRecogniser(ToneRecogniser, warmup=0),
        source,
        tmp_path / "rows.jsonl",
        RunOptions(batch_size=2, progress=False),
    )
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row.audio_filepath for row in rows] == ["id4", "id3", "id2", "same#2", "same"]
    assert [row.pred_text.split(" ")[0] for row in rows] == ["", "three", "two", "one", "zero"]
    assert "id4" in str(rows[0].error)
    assert summary.num_failed == 1


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "libopus")])
def test_hub_audio_in_any_container(hub_folder: Path, tmp_path: Path, container: str, codec: str) -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48000)
        samples = (0.5 * np.sin(2 * np.pi * 400 * np.arange(48000) / 48000)).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    cells = [{"bytes": buffer.getvalue(), "path": None}] * 3
    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    table = pyarrow.table({"audio": cells, "text": ["four"] * 3}, features.arrow_schema)
    parquet.write_table(table, hub_folder / "test-00000-of-00001.parquet")
    summary = run_set(
        LazyRecogniser(ToneRecogniser, warmup=0),
        open_source(f"{hub_folder}::test"),
        tmp_path / "rows.jsonl",
        RunOptions(progress=False),
    )
    rows = read_rows(tmp_path / "rows.jsonl")
    assert summary.num_failed == 0
    assert [row.pred_text.split(" ")[0] for row in rows] == ["three"] * 3  # 400 Hz
    assert all(abs(row.duration - 1.0) < 0.1 for row in rows)


def test_hub_faults(hub_folder: Path) -> None:
    with pytest.raises(SourceError, match="cannot be loaded"):
        open_source(f"{hub_folder}::train")
    datasets.Dataset.from_dict({"sound": ["a"], "text": ["b"]}).to_parquet(hub_folder / "test-00000-of-00001.parquet")
    with pytest.raises(SourceError, match="has the columns sound, text; expected one named audio"):
        open_source(f"{hub_folder}::test")


def test_chunked_hub_set(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the hub lead to folders here; the rest is as it is there."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    texts = {"id": ["b", "a"], "text": ["all of b", "all of a"]}
    parquet.write_table(pyarrow.table(texts), recordings / "test-00000-of-00001.parquet")
    table = {"file_name": ["a0.wav", "b0.wav"], "parent_id": ["a", "b"], "chunk_index": [0, 0]}
    parquet.write_table(pyarrow.table(table), hub_folder / "test-00000-of-00001.parquet")
    (hub_folder / "audio").mkdir()
    for name, word in (("a0.wav", 1), ("b0.wav", 2)):
        soundfile.write(hub_folder / "audio" / name, tone(word, 0.1), RATE)
    chunked, whole = next(iter(CHUNKED.items()))
    load = datasets.load_dataset
    places = {chunked: str(hub_folder / "*.parquet"), whole: str(recordings / "*.parquet")}
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, config, *, split, streaming: load("parquet", data_files={split: places[path]}, split=split),
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **options: str(hub_folder))
    source = open_source(f"{chunked}::test")
    run_set(
        LazyRecogniser(ToneRecogniser, warmup=0),
        source,
        tmp_path / "rows.jsonl",
        RunOptions(progress=False, batch_size=1),
    )
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [(row.parent_id, row.chunk_index, row.text) for row in rows] == [("a", 0, "all of a"), ("b", 0, "all of b")]
    assert [row.pred_text.split(" ")[0] for row in rows] == ["one", "two"]
    parquet.write_table(pyarrow.table({**table, "parent_id": ["a", "c"]}), hub_folder / "test-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"b0\.wav is of recording 'c'"):
        clips_of(open_source(f"{chunked}::test"))


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file or folder.*org/name:config:split"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(SourceError, match="neither a metadata"):
        open_source(str(tmp_path))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SourceError, match="has no clips"):
        open_source(str(tmp_path / "empty.jsonl"))
    manifest = write_corpus(tmp_path / "corpus", 2)
    twice = open_source(str(manifest))
    with pytest.raises(SourceError, match="have one name, corpus  test"):
        check_distinct([twice, twice])
    manifest.write_text(manifest.read_text("utf-8") * 2, "utf-8")
    names = [clip.audio_filepath for clip in clips_of(open_source(str(manifest)))]
    assert names == ["clip0.wav", "clip1.wav", "clip0.wav#2", "clip1.wav#2"]


def test_suites() -> None:
    assert len(suite("open-asr")) == 8
    for specs in SUITES.values():
        assert len(set(specs)) == len(specs)
        assert all(spec.count(":") == 2 and "/" in spec for spec in specs)
    languages = {language_of(spec) for spec in suite("open-asr-multilingual")}
    assert languages == {"de", "fr", "it", "es", "pt", "nl"}
    for name in ("open-asr", "open-asr-2026", "long-form"):
        assert {language_of(spec) for spec in suite(name)} == {"en"}
    with pytest.raises(SourceError, match="known are open-asr"):
        suite("all")

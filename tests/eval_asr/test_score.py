"""Scores: equal to jiwer's and kaldialign's, by the leaderboard's rules, and their statistics."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import kaldialign
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from whisper_normalizer.english import EnglishTextNormalizer

from eval_asr.__main__ import main
from eval_asr.alignment import Piece, compound_alignments, plain_alignments, word_errors
from eval_asr.compare import compare, compare_scores
from eval_asr.errors import ResultsError, ScoringError
from eval_asr.names import Run, SetName, manifest_name, parse_manifest_name
from eval_asr.normalise import english_normaliser, rules_for
from eval_asr.progress import RunningScore
from eval_asr.results import Row
from eval_asr.score import SetScore, composites, join_chunks, score_folder, score_rows
from eval_asr.statistics import bootstrap_interval, paired_bootstrap
from eval_asr.word_errors import WordErrors

# What a normaliser stumbles over: contractions, numbers, money, ordinals, British spelling, fillers, brackets, scripts.
LINES = (
    "won't can't it's he'd been i'm y'all let's gonna o'clock cause kinda mr. Mrs dr St. [laugh] (noise) <unk> [ )",
    "one two twenty twenty-one oh zero hundred thousand million double triple point and a half percent per cent",
    "dollars pounds cents $5 £3.50 €20 ¢7 5% 1st 2nd 21st third twelfth minus negative plus 3,000 1,000,000 10:30 3.5",
    "0.5 1990s ones -5 +3 3/4 5kg a1 colour organise theatre uh um hmm mm ... ? ' \" café naïve ß ﬁ œuvre",
    "हिन्दी 中文 привет مرحبا שלום 🎧 ² ½ \u200b ignore_time_segment_in_scoring",
)
AWKWARD = [word for line in LINES for word in line.split()]
texts = st.one_of(
    st.lists(st.sampled_from(AWKWARD), max_size=8).map(" ".join),
    st.text(max_size=12),
    st.sampled_from(["", " ", "ignore time segment in scoring", "IGNORE_TIME_SEGMENT_IN_SCORING", "(all of it)"]),
)
pairs = st.lists(st.tuples(texts, texts), min_size=30, max_size=30)
NAME = SetName("m", "d", "", "test")


def rows_of(said: list[tuple[str, str]], **values: float) -> list[Row]:
    seconds = {"duration": 2.0, "time": 0.5, **values}
    return [Row(f"clip{index}", text=text, pred_text=pred, **seconds) for index, (text, pred) in enumerate(said)]


def classic(said: list[tuple[str, str]], **values: float) -> SetScore:
    return score_rows(rows_of(said, **values), NAME, rules_for("classic", "en", None))


def write(folder: Path, name: str, rows: list[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(row.to_json() + "\n" for row in rows), "utf-8")
    return folder / name


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_classic_equals_jiwer(said: list[tuple[str, str]]) -> None:
    """Three thousand pairs, thirty at a time."""
    normalise = english_normaliser()
    expected = [(normalise(text), normalise(pred)) for text, pred in said]
    expected = [(text, pred) for text, pred in expected if text.strip() not in ("", "ignore time segment in scoring")]
    assume(expected)
    output = jiwer.process_words([text for text, _ in expected], [pred for _, pred in expected])
    score = classic(said)
    assert score.errors == WordErrors(output.hits, output.substitutions, output.deletions, output.insertions)
    assert score.wer == round(100 * output.wer, 2)
    assert score.cer == round(100 * jiwer.cer([text for text, _ in expected], [pred for _, pred in expected]), 2)
    assert score.num_left_out == len(said) - len(expected)
    for row in score.rows:
        alone = jiwer.process_words(row.reference, row.hypothesis)
        counts = (row.errors.hits, row.errors.substitutions, row.errors.deletions, row.errors.insertions)
        assert counts == (alone.hits, alone.substitutions, alone.deletions, alone.insertions)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_normaliser_is_whispers(text: str) -> None:
    """The package whisper-normalizer, without the four contractions that it added to Whisper's."""
    whisper = EnglishTextNormalizer()
    for added in ("kinda", "sorta", "dunno", "cause"):
        del whisper.replacers[rf"\b{added}\b"]
    assert english_normaliser()(text) == whisper(text)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("He'd been told it won't cost $20 million!", "he had been told it will not cost $20000000"),
        ("two dollars and seven cents", "$2.07"),
        ("the twenty-first of May, 3,000 men", "the 21st of may 3000 men"),
        ("fifty per cent, one oh one", "50% 101"),
        ("Um, the colour [laughs] (aside) was grey", "the color was gray"),
        ("kinda 'cause", "kinda 'cause".replace("'", "")),
    ],
)
def test_normaliser_examples(text: str, normalised: str) -> None:
    assert english_normaliser()(text).strip() == normalised


def test_nothing_to_score() -> None:
    with pytest.raises(ScoringError, match="none of its 2 rows counts"):
        classic([("ignore_time_segment_in_scoring", "a"), ("(uh)", "b")])
    assert plain_alignments([]) == []
    assert WordErrors(insertions=2).wer == float("inf")
    assert WordErrors().wer == 0.0


def test_failed_rows_count_and_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*rows_of([("a b", "a b"), ("c d", "c x")]), Row("bad", 0.0, 0.0, "e f", "", "AudioError: bad: is empty")]
    write(tmp_path, "MODEL_m_DATASET_d__test.jsonl", rows)
    (score,) = score_folder(tmp_path)
    assert score.errors == WordErrors(hits=3, substitutions=1, deletions=2)
    assert score.num_failed == 1
    assert score.rtfx == 4.0  # of the clips that were recognised
    assert main(["score", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "1 clip failed and counts as empty; the first, bad: AudioError: bad: is empty" in table
    assert "classic: Whisper's English normaliser, jiwer" in table


def test_sets_are_rounded_then_averaged_and_speeds_pooled(tmp_path: Path) -> None:
    third, seventh = [("a b c", "a b x")], [("a b c d e f g", "a b c d e f x")]
    write(tmp_path, manifest_name("org/m", "hub/d", "one", "test"), rows_of(third, duration=10.0, time=1.0))
    write(tmp_path, manifest_name("org/m", "hub/d", "two", "test"), rows_of(seventh, duration=2.0, time=2.0))
    scores = score_folder(tmp_path)
    assert [score.wer for score in scores] == [33.33, 14.29]
    assert composites(scores)[Run("org-m", tmp_path)].wer == (33.33 + 14.29) / 2
    assert composites(scores)[Run("org-m", tmp_path)].rtfx == 12.0 / 3.0
    write(tmp_path, manifest_name("org/m", "hub/d", "two", "other"), rows_of(third, time=0.0))
    assert composites(score_folder(tmp_path))[Run("org-m", tmp_path)].rtfx is None


def test_parts_of_coraal_count_as_one_set(tmp_path: Path) -> None:
    for name, said in {"ATL": "a b", "DCA": "a x", "LES": "x y"}.items():
        write(tmp_path, manifest_name("m", "bezzam/coraal", name, "test"), rows_of([("a b", said)]))
    write(tmp_path, manifest_name("m", "hub/long", "earnings21", "test"), rows_of([("a b c d", "a b c x")]))
    assert composites(score_folder(tmp_path))[Run("m", tmp_path)].wer == (50.0 + 25.0) / 2


def test_a_number_beyond_python_stops_a_score_but_not_a_run(tmp_path: Path) -> None:
    huge = "9" * 5000
    with pytest.raises(ScoringError, match="clip0: the normaliser fails on '9999"):
        classic([("a", huge)])
    assert RunningScore("en").after(rows_of([("a b", huge), ("a b", "a x")])) == "WER 50.00 %"


def test_names() -> None:
    name = manifest_name("org/model", "hf-audio/esb-datasets-test-only-sorted", "librispeech", "test.clean")
    assert name == "MODEL_org-model_DATASET_hf-audio-esb-datasets-test-only-sorted_librispeech_test.clean.jsonl"
    expected = SetName("org-model", "hf-audio-esb-datasets-test-only-sorted", "librispeech", "test.clean")
    assert parse_manifest_name(name) == expected
    assert parse_manifest_name(manifest_name("m", "mini_librispeech", "", "dev_1")) == SetName(
        "m", "mini_librispeech", "", "dev_1"
    )
    assert parse_manifest_name("MODEL_m_DATASET_x_voxpopuli_cleaned_aa_test.jsonl").name == "voxpopuli_cleaned_aa"
    with pytest.raises(ResultsError, match="is not named"):
        parse_manifest_name("results.jsonl")


def test_chunks_are_joined() -> None:
    rows = [
        Row("b1", 2.0, 1.0, "all of b", " b ", None, "b", 1),
        Row("a0", 1.0, 1.0, "all of a", "all of a", None, "a", 0),
        Row("b0", 2.0, 1.0, "all of b", "all  of", None, "b", 0),
        Row("b2", 2.0, 1.0, "all of b", " ", None, "b", 2),
    ]
    joined = join_chunks(rows)
    assert joined == [Row("a", 1.0, 1.0, "all of a", "all of a"), Row("b", 6.0, 3.0, "all of b", "all  of b")]
    assert score_rows(rows, NAME, rules_for("classic", "en", None)).wer == 0.0
    with pytest.warns(UserWarning, match="'b' lacks chunks"):
        join_chunks(rows[:2])


def test_by_length() -> None:
    rows = [Row(str(seconds), float(seconds), 1.0, "a b", "a x") for seconds in (1, 4.9, 5, 12, 30, 200)]
    buckets = score_rows(rows, NAME, rules_for("classic", "en", None)).by_length
    assert [(bucket.low, bucket.high, bucket.num_clips) for bucket in buckets] == [
        (0, 2, 1), (2, 5, 1), (5, 10, 1), (10, 20, 1), (30, float("inf"), 2),
    ]  # fmt: skip
    assert {bucket.errors.wer for bucket in buckets} == {0.5}


def stand_in_clone(folder: Path) -> Path:
    """A folder with the modules and names of the leaderboard's repository, and rules of its own."""
    package = folder / "normalizer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .normalizer import Lower\n")
    (package / "normalizer.py").write_text("class Lower:\n    def __call__(self, s):\n        return s.lower()\n")
    (package / "data_utils.py").write_text(
        "from normalizer import Lower\n"
        "from .eval_utils import normalize_compound_pairs\n"
        "normalizer = Lower()\n"
        "def ml_normalizer(s, lang=None):\n    return s.lower().replace('5', 'fünf') + ' ' + lang\n"
    )
    (package / "eval_utils.py").write_text(
        "def normalize_compound_pairs(refs, preds):\n"
        "    return [r.replace('x y', 'xy') for r in refs], [p.replace('x y', 'xy') for p in preds]\n"
    )
    return folder


def test_2026_uses_the_clone_and_merges_compounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = stand_in_clone(tmp_path / "clone")
    said = [("The white paper", "the Whitepaper"), ("a firetruck came", "a fire truck"), ("one two", "ONE 2 three")]
    results = tmp_path / "results"
    write(results, manifest_name("m", "d", "en", "test"), [*rows_of(said), Row("left", 1.0, 1.0, "  ", "noise")])
    german = [("X Y 5", "xy fünf"), ("ab", "c")]
    write(results, manifest_name("m", "multilingual", "fleurs_de", "test"), rows_of(german))
    english, other = score_folder(results, rules="2026", leaderboard=clone)
    words = [([*text.lower().split()], [*pred.lower().split()]) for text, pred in said]
    expected = kaldialign.batch_error_rate(*zip(*words, strict=True), merge_compounds=True)
    assert english.wer == round(100 * expected["err_rate"], 2) == 37.5
    assert (english.errors.insertions, english.errors.deletions, english.errors.substitutions) == (1, 1, 1)
    assert english.num_left_out == 1
    assert other.errors == WordErrors(hits=4, substitutions=1)
    assert "(de)" in other.rules
    assert main(["score", str(results), "--scoring", "2026", "--leaderboard", str(clone)]) == 0
    assert "2026: the leaderboard's English normaliser, kaldialign" in capsys.readouterr().out


@given(st.lists(st.sampled_from(["a", "b", "ab", "aba", "ba", "c"]), max_size=6).map(" ".join), st.data())
def test_2026_aligns_and_counts_by_one_rule(reference: str, data: st.DataObject) -> None:
    """The words shown are those counted: kaldialign's, with compounds merged."""
    hypothesis = " ".join(data.draw(st.lists(st.sampled_from(["a", "b", "ab", "aba", "ba", "c"]), max_size=6)))
    [pieces] = compound_alignments([(reference, hypothesis)])
    errors = word_errors(pieces)
    counted = kaldialign.edit_distance(reference.split(), hypothesis.split(), merge_compounds=True)
    assert (errors.substitutions, errors.deletions, errors.insertions) == (
        counted["sub"], counted["del"], counted["ins"],
    )  # fmt: skip
    assert " ".join(piece.reference for piece in pieces if piece.reference) == reference
    assert " ".join(piece.hypothesis for piece in pieces if piece.hypothesis) == hypothesis


def test_a_merged_compound_is_one_equal_piece() -> None:
    assert compound_alignments([("the white paper came", "the whitepaper came in")]) == [
        (
            Piece("equal", "the", "the"),
            Piece("equal", "white paper", "whitepaper"),
            Piece("equal", "came", "came"),
            Piece("insert", "", "in"),
        )
    ]


@pytest.mark.parametrize(
    ("language", "text", "normalised"),
    [
        ("en", "The colour won't fade, um", "the color will not fade"),
        ("EN-gb", "The colour won't fade, um", "the color will not fade"),
        ("de", "Die Farbe [lacht] bleibt: groß!", "die farbe bleibt groß"),
        ("zh", "你好，世界", "你 好 世 界"),
    ],
)
def test_each_language_has_whispers_normaliser(language: str, text: str, normalised: str) -> None:
    rules = rules_for("classic", language, None)
    assert " ".join(rules.normalise(text).split()) == normalised
    assert ("basic normaliser" in rules.title) == (language.lower()[:2] != "en")


def test_a_language_for_scoring_wins_over_that_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "MODEL_m_DATASET_d__test.jsonl", rows_of([("won't", "will not")]))
    assert [score_folder(tmp_path, language=code)[0].wer for code in ("en", "de")] == [0.0, 100.0]
    assert main(["score", str(tmp_path), "--language", "de"]) == 0
    assert "Whisper's basic normaliser (de)" in capsys.readouterr().out


def test_folders_are_runs_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same set twice is not two sets, and one model's two runs are told apart."""
    for folder, said in (("first", "a b"), ("second", "a x")):
        for config in ("one", "two"):
            write(tmp_path / folder, manifest_name("m", "d", config, "test"), rows_of([("a b", said)]))
    means = composites(score_folder(tmp_path))
    assert {run.folder.name: (mean.wer, mean.num_sets) for run, mean in means.items()} == {
        "first": (0.0, 2), "second": (50.0, 2),
    }  # fmt: skip
    assert main(["score", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "m (first), scored by" in table
    assert "m (second), scored by" in table
    assert "no mean is taken across folders" in table
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    assert "d one test: m (first) 0.00 %, m (second) 50.00 % WER" in capsys.readouterr().out
    assert main(["compare", str(tmp_path), str(tmp_path / "second")]) == 1
    assert "was run by m (first) and by m (second); name its folder or manifest" in capsys.readouterr().err


def test_time_of_failures_counts_in_the_speed() -> None:
    rows = [Row("a", 8.0, 1.0, "a", "a"), Row("b", 8.0, 3.0, "b", "", "RuntimeError: no")]
    assert score_rows(rows, NAME, rules_for("classic", "en", None)).rtfx == 8.0 / 4.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scoring", "2026"], "clone github.com/huggingface/open_asr_leaderboard"),
        (["--scoring", "2026", "--leaderboard", "."], "has no normalizer/data_utils.py"),
        (["--language", "german"], "expected a two-letter code"),
    ],
)
def test_rules_that_cannot_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    write(tmp_path, "MODEL_m_DATASET_d__test.jsonl", rows_of([("a", "a")]))
    assert main(["score", str(tmp_path), *arguments]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_an_old_clone_and_one_that_needs_a_package(tmp_path: Path) -> None:
    old = stand_in_clone(tmp_path / "old")
    (old / "normalizer" / "data_utils.py").write_text("normalizer = str.lower\n")
    with pytest.raises(ScoringError, match="too old"):
        rules_for("2026", "en", old)
    lacking = stand_in_clone(tmp_path / "lacking")
    (lacking / "normalizer" / "data_utils.py").write_text("import no_such_package\n")
    with pytest.raises(ScoringError, match="pip install no_such_package"):
        rules_for("2026", "en", lacking)


def test_a_set_without_rows_yet_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "MODEL_m_DATASET_d__test.jsonl", rows_of([("a", "a")]))
    write(tmp_path, "MODEL_m_DATASET_e__test.jsonl", [])
    assert main(["score", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "d test" in output.out
    assert "mean of" not in output.out
    assert output.err == "eval_asr: MODEL_m_DATASET_e__test.jsonl: has no rows yet; it is left out\n"


def test_wrong_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="has no results"):
        score_folder(tmp_path)
    manifest = write(tmp_path, "MODEL_m_DATASET_d__test.jsonl", rows_of([("a", "a")]))
    lines = {"{}": "has no string 'audio_filepath'", "[1]": "is not a JSON object", "{": "is not JSON"}
    for line, words in lines.items():
        manifest.write_text(line + "\n", "utf-8")
        with pytest.raises(ResultsError, match=f"line 1 {words}"):
            score_folder(tmp_path)


def test_bootstrap_interval_is_the_binomials_where_clips_are_words() -> None:
    """For one-word clips the error count is binomial: 1.96 standard deviations each way."""
    errors = np.repeat([1, 0], [200, 800])
    low, high = bootstrap_interval(errors, np.ones(1000, int))
    deviation = 100 * (0.2 * 0.8 / 1000) ** 0.5
    assert low == pytest.approx(20 - 1.96 * deviation, abs=0.4)
    assert high == pytest.approx(20 + 1.96 * deviation, abs=0.4)
    assert bootstrap_interval(errors, np.ones(1000, int)) == (low, high)  # the same each time


def test_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    errors, words = generator.integers(0, 4, 300), np.full(300, 10)
    assert paired_bootstrap(errors, errors, words)[0] == 1.0
    better = errors - (generator.random(300) < 0.2) * (errors > 0)
    p_value, (low, high) = paired_bootstrap(errors, better, words)
    assert p_value < 0.001
    assert low < high < 0
    # One clip better and one worse by as much says nothing; a few more for than against says little.
    mixed = errors.copy()
    mixed[:10] += 1
    mixed[10:16] -= 1
    assert paired_bootstrap(errors, mixed, words)[0] > 0.05


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = classic([("a b c", "a b c"), ("d e f", "x y z"), ("g", "g"), ("h", "h")])
    after = classic([("a b c", "a b x"), ("d e f", "d e f"), ("g", "g")])
    comparison = compare(before, after)
    assert (comparison.num_clips, comparison.num_unpaired) == (3, 1)
    assert comparison.wer_before == pytest.approx(100 * 3 / 7)
    assert comparison.difference == pytest.approx(-100 * 2 / 7)
    assert [(clip.change, clip.before.row.audio_filepath) for clip in comparison.changed] == [
        (-3, "clip1"),
        (1, "clip0"),
    ]
    with pytest.raises(ScoringError, match="two references"):
        compare(before, classic([("other", "a")]))
    with pytest.raises(ScoringError, match="no set in common"):
        compare_scores([before], [])
    folders = []
    for score in (before, after):
        folders.append(str(tmp_path / f"{len(folders)}"))
        write(Path(folders[-1]), f"MODEL_{len(folders)}_DATASET_d__test.jsonl", [row.row for row in score.rows])
    assert main(["compare", *folders]) == 0
    text = capsys.readouterr().out
    assert "difference -28.57" in text
    assert "1 clip was run by one of them only" in text
    assert "fewer errors in 1 clip, more in 1" in text
    assert text.index("clip1") < text.index("clip0")


def test_the_leaderboards_own_manifests_are_read(tmp_path: Path) -> None:
    """Times and durations may be null there, and there may be more keys."""
    line = {"audio_filepath": "sample_0", "duration": None, "time": None, "text": "a b", "pred_text": "a", "more": 1}
    (tmp_path / "MODEL_o-m_DATASET_hf-audio-x_ami_test.jsonl").write_text(json.dumps(line), "utf-8")
    (score,) = score_folder(tmp_path)
    assert score.wer == 50.0
    assert score.rtfx is None

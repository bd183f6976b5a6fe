"""The report: one page that refers to nothing outside, shows every clip, and takes every text for text."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("jinja2", reason="pip install '.[eval]'")
pytest.importorskip("matplotlib", reason="pip install '.[eval]'")

from eval_asr.__main__ import main
from eval_asr.alignment import Piece, commonest_errors, plain_alignments
from eval_asr.names import SetName
from eval_asr.normalise import rules_for
from eval_asr.report import html, plots, to_markdown, write_html, write_picture
from eval_asr.report.boards import boards
from eval_asr.report.labels import in_order, set_labels
from eval_asr.report.published import ENGLISH, MULTILINGUAL, PUBLISHED, PUBLISHED_MULTILINGUAL, leaderboard_set
from eval_asr.results import Row
from eval_asr.score import SetScore, score_folder, score_rows

HOSTILE = '</script><script>alert(1)</script> <img src=x onerror=alert(1)> <!-- "&amp;" \u2028'
ROWS = (
    Row("a clip #1.wav", 2.0, 0.1, "The cat sat on the mat", "the cat sit on mat"),
    Row("b.wav", 12.0, 0.1, "nothing wrong here", "nothing wrong here"),
    Row("c.wav", 3.0, 0.0, "it failed", "", error=f"AudioError: {HOSTILE}"),
    Row(f"d{HOSTILE}.wav", 1.0, 0.2, f"he said {HOSTILE}", f"she said {HOSTILE}"),
    Row("e.wav", 1.0, 0.2, "Größe é", "Grosse é <b>|*"),
)
LEADERBOARD = "hf-audio-esb-datasets-test-only-sorted"


def score(model: str = "m<i>", path: str = "corpus", name: str = "", split: str = "test") -> SetScore:
    return score_rows(ROWS, SetName(model, path, name, split), rules_for("classic", "en", None))


class Page(HTMLParser):
    """What of a page a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "td": []}
        self.scripts: list[dict[str, str | None]] = []
        self.tag = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self.tag in self.texts:
            self.texts[self.tag].append(data)

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Two models on a set of ours and on one of the leaderboard's, beside one audio file."""
    folder = tmp_path_factory.mktemp("results")
    scores = [score(model, *of) for model in ("m<i>", "n") for of in (("corpus",), (LEADERBOARD, "ami"))]
    for one in scores:
        lines = [row.to_json() + "\n" for row in ROWS]
        (folder / one.name.file_name).write_text("".join(lines), "utf-8")
    (folder / ROWS[0].audio_filepath).write_bytes(b"RIFF")
    (folder / "pages").mkdir()
    write_html(score_folder(folder), folder / "pages" / "report.html")
    return Page((folder / "pages" / "report.html").read_text("utf-8"))


def test_page_refers_to_nothing_outside(page: Page) -> None:
    loading = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background", "formaction"}
    for tag, name, value in page.attributes:
        if name in loading:
            assert value.startswith(("#", "data:,")), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
        assert "url(" not in value or "url(#" in value, (tag, name, value)
    assert "@import" not in page.texts["style"][0]
    assert "url(" not in page.texts["style"][0]


def test_no_text_of_a_clip_becomes_markup(page: Page) -> None:
    assert [script.get("type") for script in page.scripts] == ["application/json", None]
    assert not [tag for tag, _, _ in page.attributes if tag in ("img", "i", "b")]
    policy = next(value for _, name, value in page.attributes if name == "content" and "script-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.texts["script"][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in page.texts["script"][1]


def test_every_clip_is_there_as_it_was(page: Page) -> None:
    clips = page.data["clips"]
    assert len(page.data["sets"]) == 4
    for index in range(4):
        found = [clip for clip in clips if clip["set"] == index]
        assert [(clip["name"], clip["text"], clip["pred"], clip["error"]) for clip in found] == [
            (row.audio_filepath, row.text, row.pred_text, row.error) for row in ROWS
        ]
    assert clips[0]["errors"] == [4, 1, 1, 0]
    assert [piece for piece in clips[0]["pieces"] if piece[0] != 0] == [[1, "sat", "sit"], [2, "the"]]


def test_audio_is_linked_where_it_lies(page: Page) -> None:
    links = [clip["audio"] for clip in page.data["clips"] if clip["set"] == 0]
    assert links == ["../a%20clip%20%231.wav", None, None, None, None]
    assert unquote(links[0]) == "../" + ROWS[0].audio_filepath


def test_published_figures_stand_beside_ours(page: Page) -> None:
    cells = page.texts["td"]
    assert any("microsoft/Phi-4-multimodal-instruct" in cell for cell in cells)
    assert f"{score(path=LEADERBOARD, name='ami').wer:.2f}" in cells
    assert "11.09" in cells


@pytest.mark.parametrize(
    "entry", [*PUBLISHED, *PUBLISHED_MULTILINGUAL], ids=lambda entry: f"{entry.system} {entry.date}"
)
def test_published_means_are_the_means_of_their_sets(entry: Any) -> None:
    assert set(entry.wer) <= {*ENGLISH, *MULTILINGUAL}
    assert entry.date
    assert entry.source
    if entry.mean is not None and entry.wer:
        assert sum(entry.wer.values()) / len(entry.wer) == pytest.approx(entry.mean, abs=0.0051)


def test_published_figures_stand_only_beside_the_same_sets_run_whole() -> None:
    assert boards([score(), score(path="mine", name="ami")]) == []
    whole = score(path=LEADERBOARD, name="ami")
    [board] = boards([whole, score()])
    assert [row.system for row in board.rows if row.ours] == ["m<i>, this report"]
    assert boards([replace(whole, part="40 of 400 clips")]) == []


def test_two_runs_of_one_model_are_told_apart(tmp_path: Path) -> None:
    name = SetName("m", "corpus", "", "test").file_name
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("".join(row.to_json() + "\n" for row in ROWS), "utf-8")
        (tmp_path / folder / ROWS[0].audio_filepath).write_bytes(b"RIFF")
    write_html(score_folder(tmp_path), tmp_path / "page.html")
    data = Page((tmp_path / "page.html").read_text("utf-8")).data
    assert data["sets"] == ["corpus test · m (first)", "corpus test · m (second)"]
    links = [clip["audio"] for clip in data["clips"] if clip["audio"]]
    assert [link.split("/")[0] for link in links] == ["first", "second"]


def test_a_part_of_a_file_is_linked_as_that_part(tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(b"RIFF")
    names = ["long.wav#t=3,4.5", "long.wav#t=3,4.5#2", "long.wav#2", "other.wav#t=1"]
    assert [html._audio_link(name, [tmp_path], tmp_path) for name in names] == [
        "long.wav#t=3,4.5", "long.wav#t=3,4.5", "long.wav", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "file", "words"),
    [
        ("--out", "", "is a folder; name a file in it"),
        ("--out", "no/page.html", "there is no folder"),
        ("--markdown", "/proc/table.md", "cannot be written"),
        ("--picture", "wer.gif", "expected .png or .svg"),
    ],
)
def test_files_that_cannot_be_written_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, file: str, words: str
) -> None:
    (tmp_path / SetName("m", "corpus", "", "test").file_name).write_text(ROWS[0].to_json() + "\n", "utf-8")
    assert main(["report", str(tmp_path), option, str(tmp_path / file)]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "name", "split", "expected"),
    [
        (LEADERBOARD, "ami", "test", "AMI"),
        ("hf-audio/open-asr-leaderboard", "librispeech", "test.clean", "LibriSpeech clean"),
        (LEADERBOARD, "tedlium", "test", "TED-LIUM"),
        ("hf-audio/open-asr-leaderboard-multilingual-datasets", "fleurs_de", "test", "FLEURS de"),
        ("hf-audio/open-asr-leaderboard", "ami_cleaned", "test", None),  # corrected references are another set
        (LEADERBOARD, "ami", "validation", None),
        ("mine", "ami", "test", None),
        ("not-open-asr-leaderboard-mine", "ami", "test", None),
    ],
)
def test_only_the_leaderboards_own_sets_are_compared(path: str, name: str, split: str, expected: str | None) -> None:
    assert leaderboard_set(SetName("m", path, name, split)) == expected


def test_alignment() -> None:
    pieces = plain_alignments([("a b c", "a x c d"), ("", "y"), ("a b", "")])
    assert pieces == [
        (Piece("equal", "a", "a"), Piece("substitute", "b", "x"), Piece("equal", "c", "c"), Piece("insert", "", "d")),
        (Piece("insert", "", "y"),),
        (Piece("delete", "a", ""), Piece("delete", "b", "")),
    ]
    assert commonest_errors([*pieces, pieces[1]], 1) == [(Piece("insert", "", "y"), 2)]


def test_pictures_are_one_element_each_and_take_the_pages_colour() -> None:
    seen: set[str] = set()
    for draw, prefix in ((plots.wer_by_set, "a"), (plots.error_kinds, "b"), (plots.wer_by_length, "c")):
        svg = plots.to_svg(draw, [score(), score(path="other")], prefix)
        picture = Page(svg)
        assert svg.startswith("<svg")
        assert "currentColor" in svg
        ids = {value for _, name, value in picture.attributes if name == "id"}
        assert ids
        assert not ids & seen
        seen |= ids
        used = {value[1:] for _, name, value in picture.attributes if name.endswith("href")}
        assert used <= ids


def test_labels_tell_sets_and_models_apart() -> None:
    assert set_labels([score(path="a/corpus"), score(path="b/corpus")]) == ["a/corpus test", "b/corpus test"]
    assert set_labels([score("m"), score("n")]) == ["corpus test · m", "corpus test · n"]


def test_markdown_is_a_table_whatever_the_names() -> None:
    text = to_markdown([score(path="a|b*c")], picture="my%20picture.png")
    table = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert "| a\\|b\\*c test | m\\<i\\> |" in text
    assert "![Word error rate by set](my%20picture.png)" in text
    assert len(table) == 3
    assert {line.count("|") for line in table} == {14}
    assert "Phi-4-multimodal-instruct" not in text
    assert "Phi-4-multimodal-instruct" in to_markdown([score(path=LEADERBOARD, name="ami")])


@pytest.mark.parametrize(
    ("markdown", "picture", "link"),
    [
        ("table.md", "wer.png", "wer.png"),
        ("table.md", "docs/my wer.png", "docs/my%20wer.png"),
        ("docs/table.md", "pictures/wer.png", "../pictures/wer.png"),
        ("docs/table.md", "{here}/wer.png", "../wer.png"),
        ("{here}/docs/../table.md", "docs/wer.png", "docs/wer.png"),
    ],
)
def test_pictures_link_leads_from_the_markdown_to_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, markdown: str, picture: str, link: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("docs", "pictures"):
        (tmp_path / folder).mkdir()
    (tmp_path / SetName("m", "corpus", "", "test").file_name).write_text(ROWS[0].to_json() + "\n", "utf-8")
    markdown, picture = (name.format(here=tmp_path) for name in (markdown, picture))
    assert main(["report", ".", "--markdown", markdown, "--picture", picture]) == 0
    text = Path(markdown).read_text("utf-8")
    assert f"![Word error rate by set]({link})" in text
    assert (Path(markdown).parent / unquote(link)).samefile(picture)


def test_clips_and_audio_are_counted_once_for_all_models() -> None:
    scores = [score("m"), score("n"), score("n", path="other")]
    tiles = {tile["label"]: tile["value"] for tile in html._tiles(scores)}
    seconds = 2 * sum(row.duration for row in ROWS)
    assert (tiles["clips"], tiles["sets"], tiles["runs"]) == ("10", "2", "2")
    assert tiles["audio"] == f"{seconds:.1f} s"
    assert set(tiles) >= {"WER, one set only, m", "WER, mean of 2 sets, n"}
    axes = plots.wer_by_length(scores).axes[0]
    counted = [int(label.get_text().split("\n")[1]) for label in axes.get_xticklabels()]
    assert sum(counted) == 10


def test_a_sets_models_stand_together() -> None:
    scores = in_order([score("m"), score("m", path="other"), score("n"), score("n", path="other")])
    assert set_labels(scores) == ["corpus test · m", "corpus test · n", "other test · m", "other test · n"]


def test_folders_of_this_machine_stay_out_of_the_clips_names(tmp_path: Path) -> None:
    """Names in a manifest may be absolute; what they have in common says nothing to a reader."""
    rows = [Row(str(tmp_path / name), 1.0, 0.1, "a", "a") for name in ("x/1.wav", "y/2.wav")]
    absolute = score_rows(rows, SetName("m", "d", "", "test"), rules_for("classic", "en", None))
    text = html.render_html([absolute], tmp_path)
    assert [clip["name"] for clip in Page(text).data["clips"]] == ["x/1.wav", "y/2.wav"]
    assert str(tmp_path) not in text


def test_commonest_errors_are_those_of_the_chosen_set(page: Page) -> None:
    data = page.data
    assert len(data["common"]) == len(data["sets"]) == 4
    counts = [{str(item["piece"]): item["count"] for item in common} for common in data["common"]]
    assert counts[0]["[1, 'sat', 'sit']"] == 1
    whole = {str(item["piece"]): item["count"] for item in data["commonOfAll"]}
    assert whole["[1, 'sat', 'sit']"] == 4


def test_command_writes_page_markdown_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / SetName("m", "corpus", "", "test").file_name
    manifest.write_text("".join(row.to_json() + "\n" for row in ROWS), "utf-8")
    files = [tmp_path / name for name in ("report.html", "report.md", "wer.png")]
    asked = ["--out", str(files[0]), "--markdown", str(files[1]), "--picture", str(files[2])]
    assert main(["report", str(tmp_path), *asked]) == 0, capsys.readouterr().err
    assert len(Page(files[0].read_text("utf-8")).data["clips"]) == len(ROWS)
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([manifest, *files])


def test_picture_as_svg(tmp_path: Path) -> None:
    write_picture([score()], tmp_path / "wer.svg")
    assert "<svg" in (tmp_path / "wer.svg").read_text("utf-8")

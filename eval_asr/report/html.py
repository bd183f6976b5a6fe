"""The report as one self-contained HTML page: it refers to nothing but the clips' own audio files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval_asr.alignment import Piece, commonest_errors
from eval_asr.records import RunSettings, read_settings
from eval_asr.report import plots
from eval_asr.report.boards import boards
from eval_asr.report.labels import address, in_order, run_labels, set_labels
from eval_asr.report.tables import audio_length, mean_rows, set_rows
from eval_asr.score import SetScore
from phi4mm.files import written_whole

_HERE = Path(__file__).parent
_KINDS = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}  # as report.js numbers them
_COMMONEST = 30


def write_html(scores: Sequence[SetScore], path: Path) -> None:
    """Write the report; whole or not at all.

    Args:
        scores: of the sets to show, at least one.
        path: of the page. The audio files are linked relative to it, where they lie on this machine.

    Raises:
        ResultsError: the settings beside the results are damaged.
        OSError: the page cannot be written.
    """
    page = render_html(scores, path.absolute().parent)
    with written_whole(path) as partial:
        partial.write_bytes(page.encode("utf-8", "backslashreplace"))


def render_html(scores: Sequence[SetScore], beside: Path) -> str:
    """The page as text.

    Args:
        scores: of the sets to show, at least one.
        beside: the absolute folder that the page will lie in.
    """
    scores = in_order(scores)
    labels = set_labels(scores)
    settings = [None if score.manifest is None else read_settings(score.manifest) for score in scores]
    recognised = [[row.pieces for row in score.rows if row.row.error is None] for score in scores]
    data = {
        "sets": labels,
        "common": [_common(of_set) for of_set in recognised],
        "commonOfAll": _common(chain.from_iterable(recognised)),
        "clips": [
            clip
            for index, score in enumerate(scores)
            for clip in _clips(index, score, _audio_roots(score, settings[index]), beside)
        ],
    }
    script = (_HERE / "report.js").read_text("utf-8")
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("report.html.j2").render(
        title="Speech recognition: word error rates",
        made=f"Made on {datetime.now(UTC):%-d %B %Y, %H:%M} UTC",
        rules=list(dict.fromkeys(score.rules for score in scores)),
        tiles=_tiles(scores),
        sets=set_rows(scores),
        several=len(run_labels(scores)) > 1,
        means=mean_rows(scores),
        pictures=[
            {"caption": caption, "svg": Markup(plots.to_svg(draw, scores, prefix))}
            for caption, draw, prefix in (
                ("Word error rate by set", plots.wer_by_set, "by-set"),
                ("Kinds of errors", plots.error_kinds, "kinds"),
                ("Word error rate by clip length", plots.wer_by_length, "by-length"),
            )
        ],
        boards=boards(scores),
        labels=labels,
        in_part=[label for label, score in zip(labels, scores, strict=True) if score.part],
        settings=[
            {"label": label, "text": json.dumps(_without_paths(of_set), indent=2, ensure_ascii=False)}
            for label, of_set in zip(labels, settings, strict=True)
            if of_set is not None
        ],
        css=Markup((_HERE / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=script_hash,
        data=Markup(_json_for_script(data)),
    )


def _common(alignments: Iterable[Sequence[Piece]]) -> list[dict[str, Any]]:
    return [{"piece": _encode(piece), "count": count} for piece, count in commonest_errors(alignments, _COMMONEST)]


def _json_for_script(data: object) -> str:
    """JSON that cannot end the script element that it stands in, nor begin a comment or an entity."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _clips(index: int, score: SetScore, roots: Sequence[Path], beside: Path) -> list[dict[str, Any]]:
    prefix = _common_folder([scored.row.audio_filepath for scored in score.rows])
    return [
        {
            "set": index,
            "name": scored.row.audio_filepath.removeprefix(prefix),
            "audio": _audio_link(scored.row.audio_filepath, roots, beside),
            "duration": round(scored.row.duration, 3),
            "time": round(scored.row.time, 4),
            "errors": [
                scored.errors.hits,
                scored.errors.substitutions,
                scored.errors.deletions,
                scored.errors.insertions,
            ],
            "error": scored.row.error,
            "text": scored.row.text,
            "pred": scored.row.pred_text,
            "pieces": [_encode(piece) for piece in scored.pieces],
        }
        for scored in score.rows
    ]


def _common_folder(names: Sequence[str]) -> str:
    """The folder of absolute names, which a reader of the page need not see; empty where names are relative."""
    folders = {os.path.dirname(name) for name in names}
    return os.path.join(os.path.commonpath(folders), "") if all(map(os.path.isabs, folders)) else ""


def _encode(piece: Piece) -> list[int | str]:
    """As report.js takes it: the kind, and the text or the two texts of which it is made."""
    texts = dict.fromkeys(text for text in (piece.reference, piece.hypothesis) if text)
    return [_KINDS[piece.kind], *texts]


def _audio_roots(score: SetScore, settings: RunSettings | None) -> list[Path]:
    """Where the rows' audio files may lie: the corpus's folder, then the results' own."""
    corpus = [] if settings is None or settings.audio_root is None else [Path(settings.audio_root)]
    return [*corpus, *([] if score.manifest is None else [score.manifest.absolute().parent])]


def _audio_link(name: str, roots: Sequence[Path], beside: Path) -> str | None:
    """The audio file's address relative to the page, or ``None`` where there is no such file on this machine.

    A name may end in the part of the file that the clip is ("#t=3.5,7", which the address keeps), and in the number of
    a clip whose name comes again ("#2").
    """
    bare = re.sub(r"#\d+$", "", name)
    file_name, mark, part = bare.partition("#t=")
    for root in roots:
        for candidate, suffix in ((name, ""), (bare, ""), (file_name, mark + part)):
            file = root.absolute() / candidate
            if _is_file(file):
                return address(file, beside) + suffix
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _tiles(scores: Sequence[SetScore]) -> list[dict[str, str]]:
    runs = run_labels(scores)
    failed = sum(score.num_failed for score in scores)
    clips = {(score.name.dataset, row.row.audio_filepath): row.row for score in scores for row in score.rows}
    num_sets = len({score.name.dataset for score in scores})
    rates = [
        (row["wer"], f"WER, {row['label'][0].lower()}{row['label'][1:]}, {row['run']}") for row in mean_rows(scores)
    ]
    rates = rates or [
        (f"{score.wer:.2f}", f"WER, {runs[score.run]}" + (f", {score.part}" if score.part else "")) for score in scores
    ]
    return [
        *({"value": f"{rate} %", "label": label} for rate, label in rates),
        {"value": str(num_sets), "label": "set" if num_sets == 1 else "sets"},
        {"value": f"{len(clips):,}", "label": "clips"},
        {"value": audio_length(sum(row.duration for row in clips.values())), "label": "audio"},
        *([{"value": str(len(runs)), "label": "runs"}] if len(runs) > 1 else []),
        *([{"value": f"{failed:,}", "label": "transcriptions failed"}] if failed else []),
    ]


def _without_paths(settings: RunSettings) -> dict[str, Any]:
    """The settings as the page shows them: a page is passed on, so the folder on this machine stays out."""
    values = asdict(settings)
    del values["audio_root"], values["corpus"]
    return values

"""Small files whose words and times are known; they lie beside the data, not in the repository."""

from __future__ import annotations

import pytest

from phi4mm import Phi4MM
from phi4mm.errors import AudioError
from tests.conftest import CASES

LONG = "five five two eight oh one four"
EXPECTED: dict[str, list[tuple[float, str]]] = {  # where each segment begins, to 0.2 s, and what it says
    "chained.ogg": [(0.2, "three five nine two eight one")],
    "late.mkv": [(5.1, "three five nine")],
    "gap.mkv": [(0.2, "three five nine"), (10.2, "two eight one")],
    "mp3_in.wav": [(0.3, LONG)],
    "flac_in.ogg": [(0.2, LONG)],
    "old.spx": [(0.2, LONG)],
    "voice.mp3": [(0.2, LONG)],
    "zero_padding.mp3": [(0.2, "three five nine")],
}

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the files are not at hand")


@pytest.mark.parametrize("name", EXPECTED)
def test_words_and_times(bundled: Phi4MM, name: str) -> None:
    segments = bundled.transcribe(CASES / name).segments
    assert [segment.text for segment in segments] == [text for _, text in EXPECTED[name]]
    assert [segment.start for segment in segments] == pytest.approx([start for start, _ in EXPECTED[name]], abs=0.2)


def test_a_cut_file(bundled: Phi4MM) -> None:
    with pytest.raises(AudioError, match=r"cut\.m4a: is truncated"):
        bundled.transcribe(CASES / "cut.m4a")

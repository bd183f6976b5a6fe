"""How much audio there is to transcribe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from phi4mm.asr.progress import seconds


def test_every_channel_counts_that_is_transcribed(tmp_path: Path) -> None:
    stereo = tmp_path / "stereo.flac"
    soundfile.write(stereo, np.zeros((32000, 2)), 16000)
    (tmp_path / "notes.txt").write_text("no audio")
    assert seconds(str(stereo), each_channel=False) == 2.0
    assert seconds(str(stereo), each_channel=True) == 4.0
    assert seconds(str(tmp_path / "notes.txt"), each_channel=True) == 0.0
    assert seconds("-", each_channel=False) == 0.0

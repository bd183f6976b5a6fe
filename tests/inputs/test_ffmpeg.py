"""Files that only ffmpeg reads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from phi4mm import AudioError
from phi4mm.inputs import ffmpeg
from phi4mm.inputs.audio import load_audio, stream_audio


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_video(tmp_path: Path) -> None:
    time = np.arange(2 * 22050) / 22050
    soundfile.write(tmp_path / "tone.wav", np.stack((np.sin(2000 * time), 0 * time), axis=1) * 0.5, 22050)
    film = tmp_path / "film.mkv"
    picture = ["-f", "lavfi", "-i", "color=black:s=32x32:d=2"]
    sound = ["-i", str(tmp_path / "tone.wav"), "-c:a", "flac", str(film)]
    subprocess.run(["ffmpeg", "-v", "error", *picture, *sound], check=True)
    heard, expected = load_audio(film, channel=0), load_audio(tmp_path / "tone.wav", channel=0)
    assert heard.sampling_rate == 22050
    assert np.abs(heard.samples - expected.samples).max() < 1e-4
    next(iter(stream_audio(film)))  # left early: ffmpeg must not stay behind
    silent = tmp_path / "silent.mp4"
    subprocess.run(["ffmpeg", "-v", "error", *picture, str(silent)], check=True)
    with pytest.raises(AudioError, match=r"silent\.mp4: ffmpeg reads no sound"):
        load_audio(silent)
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    with pytest.raises(AudioError, match=r"broken\.mp4: ffmpeg reads no sound"):
        load_audio(tmp_path / "broken.mp4")


def test_video_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda name: None)
    with pytest.raises(AudioError, match="ffmpeg, which is not installed"):
        load_audio(tmp_path / "film.mp4")

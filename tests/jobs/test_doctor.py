"""What `clipmill doctor` finds missing on a machine, and what it does not ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.doctor import examine
from stages.media.ffmpeg_program import ffmpeg_problem, ffmpeg_program


@pytest.fixture
def other_ffmpeg(monkeypatch):
    """Another one named by the environment, for as long as the test takes."""
    from imageio_ffmpeg import _utils

    def name(path: Path) -> None:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        forget()

    def forget() -> None:
        ffmpeg_program.cache_clear()
        _utils._get_ffmpeg_exe.cache_clear()

    yield name
    monkeypatch.undo()
    forget()


def test_nothing_on_path_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examine(None) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "ffmpeg," in line]
    assert line.startswith("ok")
    assert str(ffmpeg_program()) in line


def test_an_ffmpeg_that_cannot_be_started_is_said(tmp_path, other_ffmpeg):
    assert ffmpeg_problem() is None
    other_ffmpeg(tmp_path / "ffmpeg")
    assert "set IMAGEIO_FFMPEG_EXE to one that can" in ffmpeg_problem()

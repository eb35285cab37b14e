"""What `clipmill doctor` finds missing on a machine, and what it doesn't require."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill.jobs.doctor import examine
from clipmill.pipeline.engine.preflight import check_models
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_problem, ffmpeg_program


@pytest.fixture
def other_ffmpeg(monkeypatch):
    """The environment names another one, until the test ends."""
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


def test_no_program_on_path_is_needed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="without it, doctor has something to report")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert examine(None) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "ffmpeg," in line]
    assert line.startswith("ok")
    assert str(ffmpeg_program()) in line


def test_broken_ffmpeg_is_reported(tmp_path, other_ffmpeg):
    assert ffmpeg_problem() is None
    other_ffmpeg(tmp_path / "ffmpeg")
    assert "set IMAGEIO_FFMPEG_EXE to one that works" in ffmpeg_problem()


def test_programs_named_by_a_recipe_are_checked(tmp_path, monkeypatch, capsys):
    """yt-dlp does without missing ones silently."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stages:\n  download_videos:\n    yt_dlp:\n"
        "      external_downloader: {m3u8: ffmpeg, http: aria2c}\n"
        "      js_runtimes: {quickjs: {}}\n"
    )
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "qjs").touch(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert examine(str(recipe)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "ok      qjs, named by download_videos.yt_dlp" in lines
    assert "missing aria2c, named by download_videos.yt_dlp" in lines


def test_missing_downloads_are_reported_once(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tmp_path / "mine.yaml"
    url = f"https://media.example/head.pth#sha256={'0' * 64}"
    recipe.write_text(
        "stages:\n  download_videos: {}\n  split_clips: {}\n"
        "  embed_clips: {model: example/not-there}\n"
        f'  score_aesthetic: {{head: "{url}"}}\n'
    )
    assert examine(str(recipe)) == 1
    out = capsys.readouterr().out
    assert out.count("see below") == 2
    assert "hf download example/not-there --local-dir ./models/not-there" in out
    assert "--set embed_clips.model=./models/not-there --set score_aesthetic.head=./head.pth" in out


def test_model_that_the_hub_refuses_is_explained_once(tmp_path, monkeypatch, capsys):
    """For all settings that name it, and after one request."""
    import huggingface_hub

    asked = []

    def refuse(self, repository, **_):
        asked.append(repository)
        raise PermissionError(f"403 for {repository}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stages:\n  download_videos: {}\n  split_clips: {}\n"
        "  embed_clips: {model: example/gated}\n"
        "  tag_clips: {model: example/gated, embeddings: embed_clips}\n"
    )
    assert examine(str(recipe)) == 1
    out = capsys.readouterr().out
    assert asked == ["example/gated"]
    assert out.count("hf download") == out.count("403 for") == 1
    assert "embed_clips.model, tag_clips.model: the model example/gated could not be" in out
    assert "--set embed_clips.model=./models/gated --set tag_clips.model=./models/gated" in out
    assert "missing tag_clips.model: example/gated\n        see embed_clips.model\n" in out
    with pytest.raises(ClipmillError, match="403") as caught:
        check_models(build_plan(load_recipe(recipe)).steps)
    assert str(caught.value).count("hf download") == 1

"""A run's lines about rows that it did not keep; its suggested commands work."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.lines_below import when_to_retry
from clipmill.schemas.errors import UsageError
from tests.media import Scene, render


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films that are too short, two that are too low, one to keep, and one non-film."""
    folder = tmp_path_factory.mktemp("films")
    for name, seconds, size in (
        ("short", 3.204, (480, 360)),
        ("shorter", 2.6, (480, 360)),
        ("low", 12, (320, 180)),
        ("lower", 12, (160, 120)),
        ("good", 12, (480, 360)),
    ):
        render(folder / f"{name}.mp4", [Scene("red", seconds)], rate=5, size=size)
    (folder / "page.mp4").write_text("<html>")
    return folder


def clipmill(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def commands(said: str, word: str) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)[1:]
        for line in said.splitlines()
        if line.startswith(f"  clipmill {word}")
    ]


def test_run_reports_why_rows_were_rejected_and_how_to_keep_them(films: Path, tmp_path: Path):
    """The printed command keeps all rows that a rule rejected, and `status` prints it, too."""
    dataset = tmp_path / "a dataset"
    said = clipmill(
        "run", "timestamps-only", "--dataset", dataset, "--sources", films, "--engine", "local"
    )
    assert re.search(
        r"^4 rejected: 2 by min_duration_seconds \(2\.60 < 10\), "
        r"2 by min_height \(120 < 360\)\.$",
        said,
        re.M,
    )
    assert re.search(r"^1 failed: 1 bad_media \(.+\)\.$", said, re.M)
    assert re.search(r"^1 video, 1 clip, 12 s$", said, re.M)
    assert "Every input is kept, rejected or failed" in said
    assert said.endswith(clipmill("status", dataset))
    (failures,) = commands(said, "failures")
    assert "page.mp4" in clipmill(*failures)
    (keep,) = commands(said, "run")
    assert keep[:3] == ["run", "--dataset", str(dataset)]
    said = clipmill(*keep, "--engine", "local")
    assert "rejected:" not in said
    stages = json.loads(clipmill("status", dataset, "--format", "json"))["stages"]
    assert (stages[0]["kept"], stages[0]["rejected"], stages[0]["failed"]) == (5, 0, 1)


def test_unfinished_work_is_not_called_accounted_for(films: Path, tmp_path: Path):
    """After half a run, the status says what is pending and how to continue."""
    said = clipmill(
        "run",
        "timestamps-only",
        "--dataset",
        tmp_path / "data",
        "--sources",
        films / "good.mp4",
        "--engine",
        "local",
        "--until",
        "download_videos",
    )
    assert "Every input" not in said
    assert "Not done yet: 1 row at split_clips." in said
    assert "1 video, 0 clips" in said
    (more,) = commands(said, "run")
    assert "Every input is kept" in clipmill(*more, "--engine", "local")


def test_impossible_requests_name_an_alternative(films: Path, tmp_path: Path, monkeypatch):
    """Fixed shards, an export without clips, a report without --output."""
    dataset = tmp_path / "data"
    words = [
        "run",
        "timestamps-only",
        "--dataset",
        dataset,
        "--sources",
        films / "good.mp4",
        "--engine",
        "local",
    ]
    clipmill(*words)
    again = CliRunner().invoke(app, [*map(str, words), "--set", "shard_videos=4"])
    assert "shard_videos is now 4 (was not set): it applies to new sources only" in again.output
    assert "Nothing to do" in again.output
    out = tmp_path / "out"
    asked = ["export", str(dataset), "--format", "webdataset", "--output", str(out)]
    with pytest.raises(UsageError, match=r"of 1 clip all .*1 no caption\); --keep-uncaptioned"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
    clipmill(*asked, "--keep-uncaptioned")
    with pytest.raises(UsageError, match=r"subset explain .*data --where 'motion > 99'"):
        CliRunner().invoke(
            app,
            [*asked[:-1], f"{out}2", "--keep-uncaptioned", "--where", "motion > 99"],
            catch_exceptions=False,
        )
    monkeypatch.chdir(tmp_path)
    assert clipmill("report", "data").startswith("data-report.html: ")
    assert "</html>" in (tmp_path / "data-report.html").read_text()


def test_advice_about_a_models_server_names_no_cookies():
    """`blocked` at a stage with a model is a server that refuses the key."""
    assert when_to_retry("blocked", 3, 0) == (
        "after adding cookies, a proxy or another user_agent, or waiting"
    )
    assert when_to_retry("blocked", 3, 3) == "once the model's server accepts the key"
    both = when_to_retry("blocked", 3, 1)
    assert "cookies" in both
    assert "of stages with models, once the model's server accepts the key" in both
    assert when_to_retry("model", 3, 3) == when_to_retry("model", 3, 0)

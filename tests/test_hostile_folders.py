"""Folder names with a meaning to a shell, SQL, a glob or an option parser."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from tests.download_helpers import make_video

# Next to each is a folder that it would match as a pattern.
NAMES = {
    "-0 '\";[a]*?{b}%20#<b>$(x) é\n&|~%s": "-0 '\";aX?{b}%20#<b>$(x) é\n&|~%s",
    "**": "other",
    "a?b": "axb",
    "[!x]": "y",
    "year=2026": "year=2027",
}


EVERYTHING = "SELECT clip_id, caption, title FROM clips ORDER BY ALL"


def cli(*arguments: object) -> str:
    """What a successful command prints on standard output."""
    found = CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    return found.stdout


def rows_of(dataset: str, query: str) -> list[dict]:
    return json.loads(cli("sql", "--format", "json", "--", dataset, query))


@pytest.mark.parametrize(
    "name", [next(iter(NAMES)), pytest.param(list(NAMES)[1], marks=pytest.mark.slow)]
)
def test_all_commands_work_in_a_folder_of_any_name(name, made, tmp_path, monkeypatch):
    """Even if the name begins with a dash, or matches its neighbour as a pattern."""
    place = tmp_path / name
    place.mkdir()
    monkeypatch.chdir(place)
    here = f"./{name}"
    shutil.copytree(made.dataset, here)
    (place / NAMES[name]).mkdir()
    for folder in ("sources", "split_clips", "download_videos", "index"):
        shutil.copytree(made.dataset / folder, place / NAMES[name] / folder)
    expected = rows_of(str(made.dataset), EVERYTHING)
    assert rows_of(here, EVERYTHING) == expected
    for view in (
        "videos",
        "sources",
        "embeddings",
        "frames_index",
        "shots",
        "failures_all",
        "rejections",
        "runs",
        "steps.caption_frames",
    ):
        counted = f"SELECT count(*) AS n FROM {view}"
        assert rows_of(here, counted) == rows_of(str(made.dataset), counted), view
    for command in ("status", "failures", "runs", "logs", "verify", "index"):
        cli(command, "--", here)
    cli("run", "--dataset", here, "--engine", "local")
    recipe = place / "-s [x]*.yaml"
    recipe.write_text("rules:\n  - where: duration_seconds > 0\n")
    cli("subset", "explain", "--", here, recipe.name)
    cli("subset", "create", "--name", "all", "--", here, f"./{recipe.name}")
    cli("subset", "list", "--", here)
    assert "all" in cli("subset", "show", "--", here, "all")
    assert rows_of(here, "SELECT count(*) AS n FROM subset_clips") == [{"n": len(expected)}]
    cli("report", "--output", "-r '[a]*.html", "--subset", "all", "--", here)
    assert (place / "-r '[a]*.html").stat().st_size > 10_000
    cli("sql", "--format", "csv", "--output", "-x[a]*.csv", "--", here, "FROM clips")
    assert len((place / "-x[a]*.csv").read_text().splitlines()) >= len(expected)
    video = rows_of(here, "SELECT min(video_id) AS v FROM videos")[0]["v"]
    cli("remove", "--video", video, "--", here)
    cli("verify", "--", here)
    left = sum(not row["clip_id"].startswith(video) for row in expected)
    assert rows_of(here, "SELECT count(*) AS n FROM clips") == [{"n": left}]
    assert f"{left}" in cli("subset", "show", "--", here, "all")


@pytest.mark.parametrize("format_", ["parquet", "csv", "webdataset", "huggingface", "interleaved"])
def test_all_exports_can_write_to_a_folder_of_any_name(format_, made, tmp_path, monkeypatch):
    name = next(iter(NAMES))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    shutil.copytree(made.dataset, f"./{name}")
    media = "copy" if format_ in ("webdataset", "huggingface") else "none"
    cli(
        "export",
        "--format",
        format_,
        "--output",
        f"-e{name}",
        "--media",
        media,
        "--engine",
        "local",
        "--",
        f"./{name}",
    )
    first = sorted(path.name for path in Path(f"./-e{name}").rglob("*"))
    assert len(first) > 1
    # Resumed: everything is found again.
    cli(
        "export",
        "--format",
        format_,
        "--output",
        f"-e{name}",
        "--media",
        media,
        "--engine",
        "local",
        "--",
        f"./{name}",
    )
    assert sorted(path.name for path in Path(f"./-e{name}").rglob("*")) == first


def test_training_reads_a_subset_in_a_folder_of_any_name(made, tmp_path):
    from clipmill.pipeline.training import ClipDataset

    recipe = tmp_path / "all.yaml"
    recipe.write_text("rules:\n  - where: duration_seconds > 0\n")
    for name in NAMES:
        place = tmp_path / name / name
        shutil.copytree(made.dataset, place)
        cli("subset", "create", "--name", "all", "--", place, recipe)
        clips = ClipDataset(place, subset="all", frames=1)
        assert clips[0]["video"].shape == (1, 3, 224, 224)


def test_run_finds_sources_next_to_a_recipe_of_any_name(tmp_path, monkeypatch):
    """A recipe's globs are relative to its folder, whose own name is not a pattern."""
    name = next(iter(NAMES))
    place = tmp_path / name
    place.mkdir()
    monkeypatch.chdir(place)
    for number in range(2):
        (place / f"-v{number}.mp4").write_bytes(make_video(seed=number))
    text = (
        "engine: local\nstages:\n  download_videos: {min_duration_seconds: null, "
        "min_height: null}\n"
    )
    for number, sources in enumerate(("['*.mp4']", "['.']", "[{path: '-v0.mp4'}, './-v1.mp4']")):
        recipe = place / f"-r{number}[a]*.yaml"
        recipe.write_text(f"sources: {sources}\n{text}")
        cli("run", "--dataset", f"-d{number}{name}", "--", recipe.name)
        assert rows_of(f"-d{number}{name}", "SELECT count(*) AS n FROM videos") == [{"n": 2}]


@pytest.mark.parametrize("name", ["back\\slash", os.fsdecode(b"not\xffutf8")])
def test_folder_that_the_catalog_cannot_read_is_refused_at_the_start(name, tmp_path):
    """DuckDB treats a backslash in a pattern as a separator, and only supports UTF-8."""
    (tmp_path / "v.mp4").write_bytes(make_video())
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sources: [v.mp4]\nengine: local\nstages: {download_videos: {}}\n")
    for dataset in (tmp_path / name, tmp_path / name / "inside"):
        with pytest.raises(UsageError, match="move the dataset elsewhere"):
            run(load_recipe(recipe), dataset)
        assert not dataset.exists()

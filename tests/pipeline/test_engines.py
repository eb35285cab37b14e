"""The engine that a run gets when it names none, and what it does then."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.engine.engines import MOST_VIDEOS, Engine, engine_for
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.processors import usable_cpus
from tests.in_process import heard
from tests.media import Scene, render

OWN = Path(__file__).parent / "own_stages.py"
SMALL = (
    "download_videos.min_duration_seconds=0.1",
    "download_videos.min_height=16",
    "split_clips.keep_frames=true",
)
FILMS = 5
NEVER_IMPORTED = (
    "pandas.core",
    "httpx",
    "ray",
    "torch",
    "transformers",
    "yt_dlp",
    "pyarrow.dataset",
)


def chosen(recipe: str, *overrides: str, videos: int = 1, **top: str) -> Engine:
    loaded = load_recipe(recipe_path(recipe), overrides=overrides, **top)
    return engine_for(loaded.recipe, build_plan(loaded).steps, videos)


def test_small_runs_without_models_stay_in_this_process(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = chosen("timestamps-only")
    assert here.name == "local"
    assert "for 1 video" in here.why
    assert chosen("timestamps-only", videos=MOST_VIDEOS + 1).name == "ray"
    cluster = chosen("timestamps-only", "ray.address=host:6379")
    assert cluster == Engine("ray", "the cluster at host:6379 is named")
    assert chosen("timestamps-only", "ray.num_cpus=1").name == "ray"
    own = chosen("timestamps-only", f"count_letters.stage={OWN}:FetchWords")
    assert own == Engine("ray", "count_letters needs processes of its own")
    for engine in ("ray", "local"):
        assert chosen("timestamps-only", engine=engine) == Engine(engine)
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert chosen("timestamps-only").name == "ray"


def test_recipes_with_models_get_processes_of_their_own():
    assert chosen("small-cpu") == Engine("ray", "embed_clips needs processes of its own")


def command(*words: object) -> list[str]:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return ["run", "timestamps-only", *map(str, words), *settings]


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(FILMS):
        render(folder / f"{number}.mp4", [Scene("red", 0.6, number), Scene("blue", 0.6, 3)])
    return folder


def tables(dataset: Path) -> dict[str, list[dict]]:
    """The rows of all tables in the order of the shards, without what differs between runs."""
    found: dict[str, list[dict]] = {}
    for name in ("sources", "download_videos", "scan_videos", "frames", "split_clips", "shots"):
        files = sorted((dataset / name).rglob("[0-9]*.parquet"))
        rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        found[name] = [
            {key: value for key, value in row.items() if key not in ("downloaded_at",)}
            for row in rows
        ]
        assert found[name], name
    return found


def test_a_run_that_names_no_engine_imports_and_starts_little(films, tmp_path, capfd):
    """Its rows are those of a run that reads one video after the other."""
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "clipmill.jobs.cli"),
            *command("--sources", films, "--dataset", tmp_path / "a"),
        ],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.M))
    assert "clipmill.pipeline.run" in imported
    assert not imported.intersection(NEVER_IMPORTED)
    assert "Plan: every stage in this process (engine auto: Ray would" in done.stderr
    if usable_cpus() > 1:
        assert f"split_clips: {usable_cpus()} videos at a time" in done.stderr
    (record,) = (tmp_path / "a" / "runs").glob("*.json")
    assert json.loads(record.read_text())["engine"] == "local"
    assert len(list((tmp_path / "a" / "sources").glob("*.parquet"))) == 1  # they are small

    one = ["--engine", "local", "--set", "split_clips.scan_workers=1"]
    assert heard(capfd, *command("--sources", films, "--dataset", tmp_path / "b", *one))[0] == 0
    assert tables(tmp_path / "a") == tables(tmp_path / "b")


@pytest.mark.slow
def test_rows_are_the_same_on_ray(films, tmp_path, capfd):
    for name in ("auto", "ray"):
        words = command("--sources", films, "--dataset", tmp_path / name, "--engine", name)
        assert heard(capfd, *words)[0] == 0
    assert tables(tmp_path / "auto") == tables(tmp_path / "ray")


def test_a_dry_run_says_which_engine_and_why(films, tmp_path, capfd):
    words = command("--sources", films, "--dataset", tmp_path / "a", "--dry-run")
    assert f"Engine: local (auto: Ray would take longer to start than it saves for {FILMS} vid" in (
        heard(capfd, *words).stdout
    )
    plan = json.loads(heard(capfd, *words, "--format", "json", "--engine", "ray").stdout)
    assert (plan["engine"], plan["engine_reason"]) == ("ray", None)


@pytest.mark.slow
def test_an_interrupted_run_ends_its_decoders_and_goes_on_later(tmp_path):
    film = tmp_path / "films"
    film.mkdir()
    for number in range(3):
        render(film / f"{number}.mp4", [Scene("red", 40.0, number), Scene("blue", 20.0, 3)])
    words = [sys.executable, "-m", "clipmill.jobs.cli"]
    words += command("--sources", film, "--dataset", tmp_path / "a")
    run = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "a" / "journal"
    while not list(journal.glob("*scan_videos*")) and run.poll() is None:
        time.sleep(0.02)
    decoders = psutil.Process(run.pid).children()
    assert decoders
    run.send_signal(signal.SIGINT)
    assert "Stopped." in run.communicate(timeout=60)[1]
    assert run.returncode == 128 + signal.SIGINT
    assert not list(journal.glob("*scan_videos*"))  # no row is blamed for this
    assert not psutil.wait_procs(decoders, timeout=10)[1]
    subprocess.run(words, stdin=subprocess.DEVNULL, check=True)
    assert {row["error"] for row in tables(tmp_path / "a")["scan_videos"]} == {None}

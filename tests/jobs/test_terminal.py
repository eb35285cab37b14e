"""Commands typed into a terminal end: only the command itself holds the terminal."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.faults.kill_world import command
from tests.media import Scene, cached
from tests.pipeline.test_submit import free_port
from tests.typed import CTRL_C, Shell

SECONDS = 200.0
STAGE = Path(__file__).with_name("terminal_stages.py")


def typed(*words: object) -> str:
    return shlex.join(command(*words))


def splitting(folder: Path, **settings: object) -> str:
    """A run over one film with a stage that touches the terminal."""
    film = cached((Scene("red", 2.0), Scene("blue", 2.0)), size=(320, 240), rate=10)[0]
    recipe = folder / "touching.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "sources": [str(film)],
                "stages": {
                    "download_videos": {"min_duration_seconds": 1, "min_height": None},
                    "split_clips": {},
                    "touch_terminal": {"stage": f"{STAGE}:TouchTerminal", **settings},
                },
            },
            sort_keys=False,
        )
    )
    return typed("run", recipe, "--dataset", folder / "dataset")


def is_terminal(dataset: Path) -> list[bool]:
    """Whether the stage's programs had the terminal, by clip."""
    (table,) = dataset.glob("touch_terminal/*/000000.parquet")
    return pq.read_table(table, partitioning=None)["is_terminal"].to_pylist()


@pytest.mark.slow  # starts Ray
def test_run_on_ray_with_splitting_ends_on_a_terminal(tmp_path):
    with Shell() as shell:
        status, screen = shell.run(splitting(tmp_path), SECONDS)
        assert status == 0, screen
        assert is_terminal(tmp_path / "dataset") == [False, False]
        assert not shell.holders
        assert screen.index("Reading the recipe") < screen.index("starting Ray")
        assert re.search(r"split_clips +━+ +1/1 ", screen)
        # Ray's own displays have these names.
        workers = [one for one in shell.commands if one.startswith("ray::MapWorker(MapBatches(")]
        assert any("split_clips" in one for one in workers), shell.commands


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_ends_a_demo_and_the_next_one_resumes(tmp_path):
    """In the middle of the run, when workers of every pool are running."""
    demo = typed("demo", "--dataset", tmp_path / "demo")
    with Shell() as shell:
        shell.begin(demo)
        shell.until(lambda: list((tmp_path / "demo").glob("split_clips/*/*.parquet")), SECONDS)
        shell.press(CTRL_C)
        assert shell.end(20) == 130
        assert "Stopped. What is committed stays" in shell.screen()
        status, screen = shell.run(demo, 280)
        assert status == 0, screen
        assert not shell.holders


@pytest.mark.slow
def test_run_on_a_cluster_started_from_a_terminal_ends(tmp_path):
    """Its workers belong to a process whose standard input is the terminal."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short,  # socket paths are limited
        Shell(RAY_AUTH_MODE="disabled") as head,
        Shell(RAY_AUTH_MODE="disabled") as shell,
    ):
        head.begin(
            shlex.join(
                map(
                    str,
                    (
                        ray,
                        "start",
                        "--head",
                        "--block",
                        "--num-cpus=2",
                        f"--port={port}",
                        "--include-dashboard=false",
                        f"--temp-dir={short}",
                        "--disable-usage-stats",
                        f"--dashboard-agent-listen-port={free_port()}",
                        f"--ray-client-server-port={free_port()}",
                        "--object-store-memory=100000000",
                    ),
                )
            )
        )
        head.wait_for("Ray runtime started", 100)
        status, screen = shell.run(
            f"{splitting(tmp_path)} --set ray.address=127.0.0.1:{port}", SECONDS
        )
        assert status == 0, screen
        assert is_terminal(tmp_path / "dataset") == [False, False]
        head.press(CTRL_C)
        head.end(60)


def test_local_run_in_the_background_ends(tmp_path):
    """If the command itself is in a background group, its programs are stopped with it."""
    with Shell() as shell:
        shell.press(f"{splitting(tmp_path, by_name=False)} --engine local &\n")
        status, screen = shell.run("wait $!", SECONDS)
        assert status == 0, screen
        assert is_terminal(tmp_path / "dataset") == [False, False]

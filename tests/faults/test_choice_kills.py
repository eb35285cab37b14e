"""Runs of choices that are killed at random moments, each then wider, end like one whole run."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmill.schemas.ids import source_key
from tests.faults.kill_world import (
    ROOT,
    World,
    check_whole,
    command,
    environment,
    newest,
    tables_of,
)
from tests.http_server import serve

RUN_SECONDS = 240.0
MOST_KILLS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serve() as site:
        world = World(tmp_path_factory.mktemp("choices"), site)
        world.make_films()
        yield world


def sample_seed(world: World, count: int, draw: random.Random) -> int:
    """A seed whose sample does not hold the twin without the film, which would be kept instead."""
    urls = (world.folder / "urls.txt").read_text().split()
    twin, film = (next(u for u in urls if u.endswith(end)) for end in ("twin.mp4", "film0.mp4"))
    while True:
        seed = draw.randrange(1000)
        drawn = sorted(
            urls, key=lambda url: hashlib.md5(f"{source_key(url)} {seed}".encode()).hexdigest()
        )[:count]
        if twin not in drawn or film in drawn:
            return seed


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(6))
def test_killed_choices_leave_no_trace(seed: int, world: World, tmp_path: Path) -> None:
    draw = random.Random(seed)
    dataset = tmp_path / "dataset"
    recipe = world.recipe(captions=False, pace_seconds=0.1)
    engine = "local" if seed % 3 else "ray"
    count = draw.randint(2, 5)
    start = draw.uniform(0.5, 2.0)
    for asked in (
        ["--sample", count, "--seed", sample_seed(world, count, draw)],
        ["--until", "split_clips"],
        ["--where", f"start_seconds < {start}"],
        ["--where", f"start_seconds < {2 * start}"],
        [],
    ):
        kills = 0
        while True:
            words = ["run", recipe, "--dataset", dataset, "--engine", engine, *asked]
            process = subprocess.Popen(
                command(*words),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            before, wanted = committed(dataset), draw.randint(0, 3)
            is_killed = kills < MOST_KILLS and draw.random() < 0.7
            ends = time.monotonic() + RUN_SECONDS
            while process.poll() is None and time.monotonic() < ends:
                if is_killed and committed(dataset) - before >= wanted and dataset.exists():
                    time.sleep(draw.uniform(0, 0.5))
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.02)
            _, said = process.communicate(timeout=60)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
        if asked[:1] != ["--until"]:
            check_whole(dataset)
    right = newest(world.right(False))
    assert newest(tables_of(dataset)) == right


def committed(dataset: Path) -> int:
    return sum(1 for _ in dataset.glob("*/*/[0-9]*.parquet"))

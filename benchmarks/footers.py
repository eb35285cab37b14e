"""Measures how long an estimate takes for a dataset of many shards.

    python -m benchmarks.footers [--shards 100000] [--folder DIR]

Makes a few shards of `benchmarks.gates` appear under many names, by links: all sources, and of each
step the first half. Then times what a run and a dry run do for their estimates, in a process each:
listing shards, and reading the footers of at most 60 and 1,000 of them per step. `dry run` includes
the stand-in for the dataset.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gates import make_dataset, plan_with
from clipmill.pipeline.costs.bill import GROUPS, GROUPS_AT_START, Pending, estimate
from clipmill.pipeline.costs.shadow import shadow_of
from clipmill.pipeline.dataset.shards import committed_shards, shard_name, shard_path
from clipmill.pipeline.engine.retry import list_shards
from clipmill.pipeline.ingest.sources import list_source_shards
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.folders import SOURCES

MADE_CLIPS = 8_000


def multiply(dataset: Path, shards: int) -> None:
    """Links the shards of each table to more names; ext4 takes 65,000 links of one file."""
    for folder in [dataset / SOURCES, *(step.folder(dataset) for step in plan_with(None).steps)]:
        made = committed_shards(folder)
        last = shards if folder.name == SOURCES else shards // 2
        for number in range(len(made), last):
            source = shard_path(folder, made[number % len(made)])
            os.link(source, shard_path(folder, shard_name(number)))


def at_start(dataset: Path, groups: int) -> None:
    plan = plan_with(None)
    shards = list_shards(dataset, list_source_shards(dataset))
    work = Pending(plan, plan.steps, shards, dataset)
    found = estimate(work, load_recipe(recipe_path("demo")).recipe, dataset, groups=groups)
    assert found.has_work
    assert found.stages[0].measured_on


def dry_run(dataset: Path) -> None:
    with shadow_of(dataset) as shadow:
        at_start(shadow, GROUPS)


def timed(function: Callable[..., None], *arguments: object) -> None:
    started, busy = time.monotonic(), time.process_time()
    function(*arguments)
    seconds, busy = time.monotonic() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.1f} | {busy:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the dataset is made and kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-footers-") as temporary:
        dataset = (given.folder or Path(temporary) / "dataset").absolute()
        if not (dataset / "whole").is_file():
            shutil.rmtree(dataset, ignore_errors=True)
            started = time.monotonic()
            make_dataset(dataset, MADE_CLIPS, 16, 0, "where motion > 7.3")
            multiply(dataset, given.shards)
            (dataset / "whole").touch()
            print(f"made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        print(f"| {given.shards:,} shards | seconds | processor seconds | peak MB |")
        print("|---|---|---|---|")
        for what, function, arguments in (
            ("at a run's start", at_start, (dataset, GROUPS_AT_START)),
            ("dry run", dry_run, (dataset,)),
        ):
            print(f"| {what} | ", end="", flush=True)
            process = multiprocessing.get_context("spawn").Process(
                target=timed, args=(function, *arguments)
            )
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{what} failed")


if __name__ == "__main__":
    main()

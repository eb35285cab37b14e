"""Measures how long a run takes to find what it is asked for, at a million clips and more.

    python -m benchmarks.choosing [--clips 1000000] [--videos 16] [--folder DIR]

Writes the tables of `benchmarks.gates`, whose captioning step has worked on three of ten clips, as
after `run --where`: the others were not asked for. Then times what a run does before its first
shard for the same condition, a wider one, a frozen subset, a sample, and without a choice: it
computes and stores the choice, finds the rows that earlier runs were not asked for, writes the
requests and lists the pending shards. Last, what a worker needs to find a shard's part of a choice.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import clipmill
from benchmarks.gates import NARROW, WIDE, make_dataset, plan_with
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.dataset.run_records import write_run
from clipmill.pipeline.engine.asked import Asked, shards_of
from clipmill.pipeline.engine.new_record import new_record
from clipmill.pipeline.engine.newly_asked import newly_asked, request
from clipmill.pipeline.engine.retry import list_shards
from clipmill.pipeline.engine.step_inputs import read_shard
from clipmill.pipeline.ingest.sources import list_source_shards
from clipmill.pipeline.recipes.plan import Plan, ShardList, pending
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.subsets.choosing import choose
from clipmill.pipeline.subsets.wishes import Wish
from clipmill.schemas.folders import CHOICES, RETRIES, RUNS
from clipmill.schemas.step_tables import NOT_ASKED

FIRST = f"motion > {NARROW}"
WORKER_SHARDS = 50


def finish(dataset: Path, plan: Plan) -> None:
    """Adds what runs leave, a record and the index, and a subset."""
    write_run(dataset, record(dataset, plan))
    update_index(dataset)
    with clipmill.open(dataset) as opened:
        opened.create_subset(where=f"motion > {WIDE}", name="wider")


def record(dataset: Path, plan: Plan) -> dict:
    loaded = load_recipe(recipe_path("demo"))
    shards = list_shards(dataset, list_source_shards(dataset))
    made = new_record(loaded, plan, plan.steps, shards)
    stages = [one for one in made["stages"] if one["stage"] in {s.stage_label for s in plan.steps}]
    return {**made, "stages": stages, "state": "done", "finished_at": made["started_at"]}


def prepare(dataset: Path, plan: Plan, wish: Wish | None) -> tuple[int, int, ShardList]:
    """What a run does for a wish: the rows that it lets in, by how many requests; its shards."""
    shards = list_shards(dataset, list_source_shards(dataset))
    chosen = None
    if wish is not None:
        chosen = choose(dataset, plan, wish)
        shards = shards_of(chosen, shards)
    counts = request(plan, dataset, shards, newly_asked(plan, plan.steps, dataset, shards))
    shards = list_shards(dataset, list_source_shards(dataset))
    if chosen is not None:
        shards = shards_of(chosen, shards)
    todo = pending(plan, plan.steps, shards, dataset)
    return sum(counts.values()), len(todo["caption_frames"]), shards


def find_of_shards(dataset: Path, plan: Plan, shards: ShardList) -> float:
    """Seconds that a worker takes per shard of the last step to find what is asked for."""
    step = plan.steps[-1]
    some = shards.first[:: max(1, len(shards.first) // WORKER_SHARDS)]
    clips = plan.by_label["split_clips"]
    seconds = 0.0
    for shard in some:
        rows = read_shard(clips.folder(dataset), shard, clips.stage.table_schema, ["clip_id"])
        began = time.monotonic()
        Asked(plan, dataset, shards).split(step, shard, rows, None)
        seconds += time.monotonic() - began
    return seconds / len(some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--videos", type=int, default=16, help="videos per shard")
    parser.add_argument("--folder", type=Path, help="where the dataset is made and kept")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    plan = plan_with(None)
    with tempfile.TemporaryDirectory(prefix="clipmill-choosing-") as temporary:
        dataset = (given.folder or Path(temporary) / "dataset").absolute()
        if not (dataset / RUNS).is_dir():
            shutil.rmtree(dataset, ignore_errors=True)
            started = time.monotonic()
            make_dataset(
                dataset, given.clips, given.videos, given.seed, f"{NOT_ASKED}: --where {FIRST}"
            )
            finish(dataset, plan)
            print(f"made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        made = json.loads((dataset / "made.json").read_text())
        shutil.rmtree(dataset / CHOICES, ignore_errors=True)
        sources = made["shards"] * given.videos
        print(f"{made['clips']:,} clips in {made['shards']:,} shards, {sources:,} sources\n")
        print("| | rows let in | requests | seconds | processor seconds | peak MB |")
        print("|---|---|---|---|---|---|")
        # The first run's choice comes first: without one, there is nothing to let in.
        for said, wish in (
            (f"--where {FIRST}", Wish(where=FIRST)),
            (f"--where motion > {WIDE}", Wish(where=f"motion > {WIDE}")),
            ("--subset wider", Wish(subset="wider")),
            (f"--sample {sources // 20}", Wish(sample=sources // 20)),
            ("without a choice", None),
        ):
            shutil.rmtree(dataset / RETRIES, ignore_errors=True)
            started, busy = time.monotonic(), time.process_time()
            rows, requests, shards = prepare(dataset, plan, wish)
            seconds, busy = time.monotonic() - started, time.process_time() - busy
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"| {said} | {rows:,} | {requests:,} | {seconds:.1f} | {busy:.1f} | {peak:.0f} |",
                flush=True,
            )
            if wish is not None and wish.where is not None:
                asked = shards
        shutil.rmtree(dataset / RETRIES, ignore_errors=True)
        print(f"\na worker, per shard: {find_of_shards(dataset, plan, asked):.3f} s")


if __name__ == "__main__":
    main()

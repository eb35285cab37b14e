"""Measures how long a run takes to find what a changed gate lets in, at a million clips and more.

    python -m benchmarks.gates [--clips 1000000] [--videos 16] [--folder DIR]

Writes videos, clips and a captioning step whose gate skipped seven of ten clips, with the
distributions of `benchmarks.catalog`. Then widens the gate and times what a run does before its
first shard: it finds the rows that pass now, writes the requests and lists the pending shards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.catalog import CLIPS_A_VIDEO, FINGERPRINT, STEPS, ShardMaker
from clipmill.pipeline.dataset.shards import ShardMetadata, shard_name, shard_path
from clipmill.pipeline.engine.letting_in import LettingIn, let_through
from clipmill.pipeline.engine.retry import list_shards
from clipmill.pipeline.ingest.sources import list_source_shards
from clipmill.pipeline.recipes.gates import Gate, check_gates
from clipmill.pipeline.recipes.plan import Plan, build_plan, pending
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas import tables
from clipmill.schemas.folders import RETRIES

MADE = ("sources", "download_videos", "scan_videos", "split_clips")
NARROW, WIDE = 7.3, 6.0
"""A motion that three of ten clips exceed, and one that four do."""


def write_shard(dataset: Path, number: int, seed: int, videos: int, skipped: str) -> int:
    maker = ShardMaker(number, seed, videos)
    made = dict(zip(MADE, (table for _, table in maker.tables()), strict=False))
    motion = np.asarray(made["split_clips"]["motion"])
    skip = motion <= NARROW
    rejection = {"rule": "skipped", "detail": skipped}
    made["caption_frames"] = pa.table(
        {
            "clip_id": maker.clips,
            "caption_coarse": pa.array(["a caption"] * maker.n, pa.string(), mask=skip),
            "rejection": pa.array([rejection if one else None for one in skip], tables.REJECTION),
        }
    )
    for step, found in made.items():
        schema = tables.SOURCES if step == "sources" else STEPS[step][1]
        columns = [
            found[field.name].cast(field.type)
            if field.name in found.column_names
            else pa.nulls(found.num_rows, field.type)
            for field in schema
        ]
        skipped_rows = int(skip.sum()) if step == "caption_frames" else 0
        metadata = ShardMetadata(
            step,
            step,
            shard_name(number),
            FINGERPRINT,
            "r1",
            inputs=videos if step in ("split_clips", "scan_videos") else found.num_rows,
            kept=(videos if step == "split_clips" else found.num_rows) - skipped_rows,
            skipped=skipped_rows,
            outputs=found.num_rows - skipped_rows,
            seconds=1.0,
            cpu_seconds=1.0,
        )
        folder = dataset / "sources" if step == "sources" else dataset / step / FINGERPRINT
        pq.write_table(
            pa.table(columns, schema=schema.with_metadata(metadata.encode())),
            shard_path(folder, shard_name(number)),
            compression="zstd",
        )
    return maker.n


def make_dataset(dataset: Path, clips: int, videos: int, seed: int, skipped: str) -> None:
    """Writes the tables; `skipped` says why the last step left out seven of ten clips."""
    for step in (*MADE[1:], "caption_frames"):
        (dataset / step / FINGERPRINT).mkdir(parents=True)
    (dataset / "sources").mkdir()
    shards = max(1, round(clips / (videos * CLIPS_A_VIDEO)))
    work = [(dataset, number, seed, videos, skipped) for number in range(shards)]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        total = sum(pool.starmap(write_shard, work, chunksize=8))
    (dataset / "made.json").write_text(json.dumps({"clips": total, "shards": shards}))


def plan_with(motion: float | None) -> Plan:
    """The first steps of the demo's recipe, with a gate or none, over the tables made here."""
    plan = build_plan(load_recipe(recipe_path("demo")))
    wanted = [one for one in plan.steps if one.label in (*MADE, "caption_frames")]
    steps = [replace(one, fingerprint=FINGERPRINT) for one in wanted]
    if motion is not None:
        steps[-1] = replace(steps[-1], gate=Gate(f"motion > {motion}"))
    return Plan(tuple(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--videos", type=int, default=16, help="videos per shard")
    parser.add_argument("--folder", type=Path, help="where the dataset is made and kept")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-gates-") as temporary:
        dataset = (given.folder or Path(temporary) / "dataset").absolute()
        if not (dataset / "made.json").is_file():
            shutil.rmtree(dataset, ignore_errors=True)
            started = time.monotonic()
            make_dataset(dataset, given.clips, given.videos, given.seed, f"where motion > {NARROW}")
            print(f"made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        shutil.rmtree(dataset / RETRIES, ignore_errors=True)
        made = json.loads((dataset / "made.json").read_text())
        started, busy = time.monotonic(), time.process_time()
        plan = plan_with(WIDE)
        first = list_source_shards(dataset)
        asked = LettingIn(dataset).request(plan, plan.steps, first)
        shards = list_shards(dataset, first)
        todo = pending(plan, plan.steps, shards, dataset)
        seconds, busy = time.monotonic() - started, time.process_time() - busy
        started = time.monotonic()
        (checked,) = check_gates(plan.steps)
        passed, whole = let_through(plan, checked, dataset)
        counted_seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{made['clips']:,} clips in {made['shards']:,} shards; {passed:,} of {whole:,} pass")
    print(f"{sum(asked.values()):,} let in by {len(todo['caption_frames']):,} requests\n")
    print("| | seconds | processor seconds | peak MB |\n|---|---|---|---|")
    print(f"| plan a changed gate | {seconds:.1f} | {busy:.1f} | {peak:.0f} |")
    print(f"| count what passes | {counted_seconds:.1f} | | |")


if __name__ == "__main__":
    main()

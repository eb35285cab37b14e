"""Measures how far the estimate after a sample is from what the rest then takes.

    python -m benchmarks.estimate [--videos 2000] [--share 0.05] [--engine local] [--seed 0]

Renders the demo's films in a small format, processes a random sample of them with a recipe whose
last two stages have gates, asks for the estimate of the rest, and processes the rest. Prints, for
each stage, the rows that its gate was expected to let in and those that it did, and for the whole
run the time and the processor time. Exits with 1 if rows are off by more than 15%, or time by more
than 30%.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import yaml

import clipmill
from clipmill import Rows, Stage, Workspace
from clipmill.jobs.demo.render import draw_frames
from clipmill.jobs.demo.world import FRAMES_PER_SECOND, Film, make_world

SIZE = (160, 90)
ROWS_WITHIN, TIME_WITHIN = 0.15, 0.30


class NameTones(Stage):
    """A word for each clip's brightness; takes a few milliseconds per clip, like a small model."""

    name = "name_tones"
    reads = ("split_clips.brightness",)
    writes = pa.schema([("tone", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Any]:
        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for clip, value in zip(*batch.to_pydict().values(), strict=True):
                ends = time.process_time() + 0.005
                while time.process_time() < ends:
                    pass
                rows.keep(clip, tone="bright" if value > 128 else "dark")
            return rows.table()

        yield transform


def render(film: Film, path: Path) -> None:
    """Writes a film with every second frame, in a small format."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FRAMES_PER_SECOND // 2)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        number = 0
        for shot in film.shots:
            for at, picture in enumerate(draw_frames(shot, *SIZE)):
                if at % 2:
                    continue
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(2, FRAMES_PER_SECOND)
                container.mux(video.encode(frame))
                number += 1
        container.mux(video.encode(None))


def write_recipe(folder: Path, engine: str) -> Path:
    path = folder / "recipe.yaml"
    recipe = {
        "engine": engine,
        "sources": [{"path": str(folder / "films")}],
        "stages": {
            "download_videos": {"min_duration_seconds": 1, "min_height": 16},
            "split_clips": {"threshold": 27},
            "hash_frames": {"where": "motion > 1"},
            "name_tones": {
                "stage": f"{Path(__file__).resolve()}:NameTones",
                "where": "motion > 1 AND brightness < 120",
            },
        },
    }
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return path


def worked(result: clipmill.RunResult) -> dict[str, int]:
    """The rows that each stage has worked on."""
    return {s["stage"]: s["kept"] + s["rejected"] + s["failed"] for s in result.stages}


def off(estimate: float, truth: float) -> float:
    return (estimate - truth) / truth if truth else 0.0


def compare(folder: Path, videos: int, share: float, engine: str, seed: int) -> bool:
    recipe, dataset = write_recipe(folder, engine), folder / "dataset"
    sample = max(1, round(videos * share))
    before = clipmill.run(recipe, dataset=dataset, sample=sample, seed=seed)
    found = clipmill.plan(recipe, dataset=dataset)
    spent = clipmill.open(dataset).cost()["totals"]["spent"]["cpu_seconds"] or 0.0
    began = time.monotonic()
    after = clipmill.run(recipe, dataset=dataset)
    seconds = time.monotonic() - began
    cpu = (clipmill.open(dataset).cost()["totals"]["spent"]["cpu_seconds"] or 0.0) - spent
    print(f"{videos} videos, of which {sample} were the sample, engine {engine}")
    print(f"{'':24}{'estimate':>10}{'90% range':>20}{'truth':>10}{'off by':>9}")
    is_good = True
    rows_before, rows_after = worked(before), worked(after)
    for stage in found.stages:
        truth = rows_after[stage.stage] - rows_before[stage.stage]
        is_good &= _print(f"rows of {stage.stage}", stage.passed, truth, ROWS_WITHIN)
    is_good &= _print("seconds", found.wall_seconds, seconds, TIME_WITHIN)
    return is_good & _print("processor seconds", found.amounts["cpu_seconds"], cpu, TIME_WITHIN)


def _print(what: str, found: clipmill.Range | None, truth: float, within: float) -> bool:
    if found is None:
        print(f"{what:24}{'unknown':>10}{'':20}{truth:10.0f}")
        return False
    error = off(found.value, truth)
    limits = "" if found.low is None else f"{found.low:.0f} to {found.high:.0f}"
    print(f"{what:24}{found.value:10.0f}{limits:>20}{truth:10.0f}{error:+9.0%}", flush=True)
    return abs(error) <= within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.05, help="the sample, of all videos")
    parser.add_argument("--engine", choices=("ray", "local"), default="local")
    parser.add_argument("--seed", type=int, default=0, help="of the films and of the sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "films").mkdir()
        for film in make_world(options.seed, options.videos):
            render(film, folder / "films" / f"{film.name}.mp4")
        if not compare(folder, options.videos, options.share, options.engine, options.seed):
            sys.exit(1)


if __name__ == "__main__":
    main()

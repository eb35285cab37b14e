"""The target of faults: a recipe over films served on loopback, and its expected result.

`World` is shared by a session: the films, the server, and the result of an undisturbed run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.run_records import run_records
from clipmill.pipeline.dataset.shards import ShardMetadata, base_shard, is_shard, shard_order
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from tests.http_server import File, Site, Trickle

ROOT = Path(__file__).resolve().parents[2]
OWN = Path(__file__).with_name("kill_stages.py")
FILMS = 7
WORLD_SEED = 23
_PIECE_BYTES = 16_384
_PIECE_PAUSE_SECONDS = 0.02
# When, how often and by which run a row was tried: not part of the result.
_OF_RUNS = ("downloaded_at",)
GATES = (
    ("describe_clips.where=shot % 3 = 0", "count_letters.where=duration_seconds < 5"),
    (
        "describe_clips.where=shot % 3 <> 1",
        "count_letters.where={best: 60%, of: duration_seconds, among: word IS NOT NULL}",
    ),
)
"""The gates of a run, and those of the next one: wider, and one over all shards."""
Tables = dict[tuple[str, str, str], list[dict[str, Any]]]


def paced(path: Path) -> Trickle:
    """Serves the file slowly enough for a kill during the download; it can be resumed."""
    return Trickle(File(path.read_bytes()), _PIECE_BYTES, _PIECE_PAUSE_SECONDS)


@dataclass
class World:
    """The films, their recipe, and the tables of an undisturbed run."""

    folder: Path
    site: Site
    undisturbed: dict[tuple[bool, bool], Tables] = field(default_factory=dict)

    def make_films(self) -> None:
        from clipmill.jobs.demo.render import render_film
        from clipmill.jobs.demo.world import make_world
        from tests.media import Scene, render

        urls = []
        for number, film in enumerate(make_world(WORLD_SEED, FILMS)):
            path = self.folder / f"film{number}.mp4"
            render_film(film, path)
            urls.append(self.site.script(f"/film{number}.mp4", paced(path)))
        # In one shard with its twin: if two shards run at once, either may come first.
        urls.insert(1, self.site.script("/twin.mp4", paced(self.folder / "film0.mp4")))
        urls.insert(3, self.site.status("/gone.mp4", 404))
        render(self.folder / "short.mp4", [Scene("red", 1.0)])
        urls.insert(6, self.site.file("/short.mp4", (self.folder / "short.mp4").read_bytes()))
        (self.folder / "urls.txt").write_text("\n".join(urls) + "\n")

    @property
    def n_shards(self) -> int:
        return -(-(FILMS + 3) // 2)

    def recipe(self, *, captions: bool, pace_seconds: float, calls: int = 1) -> Path:
        stages: dict[str, Any] = {
            "download_videos": {
                "min_duration_seconds": 3,
                "min_height": None,
                "retries": 1,
                "backoff_seconds": 0.1,
                "timeout_seconds": 10,
                "workers": 1,
                "concurrency": 2,
            },
            "split_clips": {"threshold": 27, "workers": 1},
            "describe_clips": {
                "stage": f"{OWN}:DescribeClips",
                "calls": calls,
                "pace_seconds": pace_seconds,
                "workers": 2,
            },
            "count_letters": {
                "stage": f"{OWN}:CountLetters",
                "pace_seconds": pace_seconds / 4,
                "workers": 1,
            },
        }
        if captions:
            stages["caption_frames"] = {
                "model": str(ROOT / "jobs/demo/models/captioner"),
                "max_new_tokens": 16,
                "skip_similar": 0,
                "dtype": "float32",
                "workers": 1,
            }
        kind = "captions" if captions else "plain"
        path = self.folder / f"kills-{kind}-{pace_seconds}-{calls}.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "sources": [{"path": str(self.folder / "urls.txt")}],
                    "shard_videos": 2,
                    "ray": {"num_cpus": 4},
                    "stages": stages,
                },
                sort_keys=False,
            )
        )
        return path

    def right(self, captions: bool, gated: bool = False) -> Tables:
        """The tables of undisturbed runs in one process, one for each set of gates."""
        place = (captions, gated)
        if place not in self.undisturbed:
            dataset = self.folder / f"undisturbed-{captions}-{gated}"
            recipe = str(self.recipe(captions=captions, pace_seconds=0.0))
            for settings in GATES if gated else ((),):
                run(load(recipe, None, overrides=settings, engine="local"), dataset)
            self.undisturbed[place] = tables_of(dataset)
        return self.undisturbed[place]


def clipmill(*words: object, **details: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **details,
    )


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "clipmill.jobs.cli", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    if "RAY_ADDRESS" not in more:
        found.pop("RAY_ADDRESS", None)
    return found


def tables_of(dataset: Path) -> Tables:
    """All rows of all tables by label, fingerprint and shard, without run-specific values."""
    found: Tables = {}
    for path in sorted(dataset.glob("*/*/*.parquet")):
        label, fingerprint = path.parts[-3:-1]
        if is_shard(path.stem) and label not in ("index", "subsets", "quarantine"):
            found[label, fingerprint, path.stem] = rows_of(path)
    for path in sorted((dataset / "sources").glob("*.parquet")):
        found["sources", "", path.stem] = rows_of(path)
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        for name in _OF_RUNS:
            row.pop(name, None)
        if row.get("error"):
            row["error"] = {name: row["error"][name] for name in ("kind", "message")}
    return rows


def newest(tables: Tables) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows by label, fingerprint and base shard; only the newest of a retried key."""
    found: dict[tuple[str, str, str], dict[str, list]] = defaultdict(dict)
    for (label, fingerprint, shard), rows in sorted(
        tables.items(), key=lambda item: shard_order(item[0][2])
    ):
        by_key: dict[str, list] = defaultdict(list)
        for row in rows:
            by_key[row[next(iter(row))]].append(row)
        found[label, fingerprint, base_shard(shard)].update(by_key)
    return {
        place: [row for key in sorted(by_key) for row in by_key[key]]
        for place, by_key in found.items()
    }


def check_whole(dataset: Path) -> None:
    """The accounting in status and in every footer is right, and verify finds nothing."""
    for stage in status_report(dataset)["stages"]:
        assert stage["pending"] == 0, stage
        done = sum(stage[name] for name in ("kept", "rejected", "failed", "skipped"))
        assert stage["inputs"] == done, stage
    for path in dataset.glob("*/*/*.parquet"):
        if is_shard(path.stem) and path.parts[-3] not in ("index", "frames", "shots"):
            footer = ShardMetadata.read(path)
            done = footer.kept + footer.rejected + footer.failed + footer.skipped
            assert footer.inputs == done, path
    report = verify(dataset)
    assert report.faults == []
    assert not report.is_running
    assert "running" not in {record["state"] for record in run_records(dataset)}


def failures(dataset: Path) -> list[tuple[str, str, str]]:
    """Stage, key and kind of unresolved failures."""
    with open_catalog(dataset) as catalog:
        return sorted(catalog.execute("SELECT stage, key, kind FROM failures").fetchall())

"""Measures imports of published metadata, and queries of the clips before any media.

    python -m benchmarks.published [--format koala-36m] [--rows 1000000 …] [--grouped] [--folder …]

Writes rows in a published layout with InternVid's distributions (33 clips per video, in random
order unless `--grouped`, 12 words per caption), then imports and queries them, each command in a
process of its own. A file that the folder already holds is reused.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.published_layouts import LAYOUTS, list_name, write_rows

SHARD_VIDEOS = 256
COUNT = "SELECT count(*) FROM clips WHERE duration_seconds BETWEEN 2 AND 30"
SCORED = f"{COUNT} AND umt_sim >= 0.35"


def _measured(command: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds and peak MB of a command that must succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024


def _sizes(dataset: Path) -> str:
    """What a dataset takes on disk, in MB."""

    def megabytes(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*.parquet")) >> 20

    return f"sources: {megabytes(dataset / 'sources')} MB, index: {megabytes(dataset / 'index')} MB"


def _measure(layout: str, rows: int, folder: Path, *, grouped: bool) -> None:
    listed, dataset = folder / list_name(layout, rows, grouped=grouped), folder / "dataset"
    if not listed.exists():
        writer = multiprocessing.Process(
            target=write_rows, args=(listed, layout, rows), kwargs={"grouped": grouped}
        )
        writer.start()
        writer.join()
    shutil.rmtree(dataset, ignore_errors=True)
    clipmill = [sys.executable, "-m", "clipmill.jobs.cli"]
    place = str(dataset)
    is_internvid = layout == "internvid"
    recipe = "internvid-aes" if is_internvid else "internvid-random"
    format_ = ["--format", layout, "--shard-videos", str(SHARD_VIDEOS)]
    commands = {
        "`import`": ["import", place, str(listed), *format_],
        "`sql`: count of all clips": ["sql", place, "SELECT count(*) FROM clips"],
        "`sql`: filtered count": ["sql", place, SCORED if is_internvid else COUNT],
        "`status`": ["status", place],
        f"`subset create {recipe}`": ["subset", "create", place, recipe],
    }
    print(f"| {layout}, {rows:,} rows | seconds | processor seconds | peak MB |\n|---|---|---|---|")
    for name, command in commands.items():
        seconds, cpu, peak = _measured([*clipmill, *command])
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {peak} |", flush=True)
    print(f"\n{listed.stat().st_size >> 20} MB listed, {_sizes(dataset)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=LAYOUTS, default="internvid")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--grouped", action="store_true", help="a video's rows next to one another")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="published-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for rows in asked.rows:
            _measure(asked.format, rows, folder, grouped=asked.grouped)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

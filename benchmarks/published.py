"""Measures imports of published metadata, and queries of the clips before any media.

    python -m benchmarks.published [--rows 1000000 …] [--folder DIR]

Writes rows in InternVid's layout with its distributions (33 clips per video, in random order, 12
words per caption), then imports and queries them, each command in a process of its own. A file
that the folder already holds is reused.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIPS_A_VIDEO = 33
SHARD_VIDEOS = 256
COUNT = "SELECT count(*) FROM clips WHERE umt_sim >= 0.35 AND duration_seconds BETWEEN 2 AND 30"
_WORDS = "a man is walking his dog on the street while two women play guitar in red"


def write_rows(path: Path, rows: int) -> None:
    """Rows of random videos, as InternVid publishes them."""
    dice = random.Random(1)
    words = _WORDS.split()
    letters = string.ascii_letters + string.digits + "-_"
    videos = ["".join(dice.choices(letters, k=11)) for _ in range(max(1, rows // CLIPS_A_VIDEO))]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            start = dice.random() * 900
            end = start + min(60, dice.lognormvariate(2, 0.8))
            file.write(
                f'{{"YoutubeID": "{dice.choice(videos)}", "Start_timestamp": "{_clock(start)}", '
                f'"End_timestamp": "{_clock(end)}", "Caption": "'
                f'{" ".join(dice.choices(words, k=12))}", "Aesthetic_Score": '
                f'{dice.gauss(4.7, 0.8):.6f}, "UMT_Score": {dice.gauss(0.35, 0.04):.16f}}}\n'
            )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02d}:{minutes:02d}:{rest:06.3f}"


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


def _measure(rows: int, folder: Path) -> None:
    listed, dataset = folder / f"rows-{rows}.jsonl", folder / "dataset"
    if not listed.exists():
        writer = multiprocessing.Process(target=write_rows, args=(listed, rows))
        writer.start()
        writer.join()
    shutil.rmtree(dataset, ignore_errors=True)
    clipmill = [sys.executable, "-m", "clipmill.jobs.cli"]
    place = str(dataset)
    format_ = ["--format", "internvid", "--shard-videos", str(SHARD_VIDEOS)]
    commands = {
        "`import`": ["import", place, str(listed), *format_],
        "`sql`: count of all clips": ["sql", place, "SELECT count(*) FROM clips"],
        "`sql`: filtered count": ["sql", place, COUNT],
        "`status`": ["status", place],
        "`subset create internvid-aes`": ["subset", "create", place, "internvid-aes"],
    }
    print(f"| {rows:,} rows | seconds | processor seconds | peak MB |\n|---|---|---|---|")
    for name, command in commands.items():
        seconds, cpu, peak = _measured([*clipmill, *command])
        print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {peak} |", flush=True)
    print(f"\n{listed.stat().st_size >> 20} MB listed, {_sizes(dataset)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="published-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for rows in asked.rows:
            _measure(rows, folder)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Measures whether a run's memory grows with the number of videos: peaks for 20 and 200.

    python benchmarks/scale.py [--videos 20 200] [--engine local|ray]

Renders a few short films, lists each many times as copies with different bytes, runs the demo's
recipe up to the embeddings, and prints for each count the peak memory of the whole process tree
(sampled proportional set size), and their ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.25
FILMS = 4


def make_films(folder: Path, count: int) -> Path:
    """`count` distinct films in `folder`: a few are rendered, the rest differ by a trailing box."""
    from clipmill.jobs.demo.render import render_film
    from clipmill.jobs.demo.world import make_world

    folder.mkdir(parents=True)
    rendered = []
    for number, film in enumerate(make_world(seed=7, n_films=FILMS)):
        path = folder.parent / f"film-{number}.mp4"
        if not path.exists():
            render_film(film, path)
        rendered.append(path.read_bytes())
    for number in range(count):
        # Readers skip a `free` box at the end, but it changes the bytes and so the id.
        text = f"copy {number:06d}".encode()
        box = (8 + len(text)).to_bytes(4, "big") + b"free" + text
        (folder / f"{number:06d}.mp4").write_bytes(rendered[number % FILMS] + box)
    return folder


def tree_megabytes(process: psutil.Process) -> float:
    """Proportional set size of a process and its descendants: shared pages count once in total."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total / 2**20


def peak_of_run(films: Path, dataset: Path, engine: str) -> tuple[float, float]:
    """Peak megabytes of the process tree, and seconds, of one run."""
    command = [
        sys.executable,
        "-m",
        "clipmill.jobs.cli",
        "run",
        "demo",
        "--dataset",
        str(dataset),
        "--sources",
        str(films),
        "--engine",
        engine,
        "--until",
        "embed_clips",
        "--set",
        "shard_videos=4",
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    peak, stop = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(SAMPLE_SECONDS):
            try:
                peak = max(peak, tree_megabytes(psutil.Process(process.pid)))
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    stop.set()
    watcher.join()
    if status:
        raise SystemExit(f"the run over {films} ended with status {status}")
    return peak, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--engine", choices=["local", "ray"], default="ray")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    print(f"| videos ({arguments.engine}) | peak MB | seconds | peak ÷ first peak |")
    print("|---|---|---|---|")
    first = None
    with tempfile.TemporaryDirectory(prefix="clipmill-scale-") as folder:
        for count in arguments.videos:
            films = make_films(Path(folder) / f"films-{count}", count)
            peak, seconds = peak_of_run(films, Path(folder) / f"dataset-{count}", arguments.engine)
            first = first or peak
            print(f"| {count} | {peak:.0f} | {seconds:.0f} | {peak / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()

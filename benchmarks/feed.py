"""Measures how well the runner feeds an accelerator and a server, and that memory stays flat.

    python -m benchmarks.feed [--parts accelerator servers memory] [--clips 4000]

The accelerator is a stand-in that takes n / rate seconds for n images; decoding is a stand-in, too,
which sleeps in as many threads as the stage has CPUs, so what is measured is the runner: reading
kept frames, calling the stage, writing and committing shards. The server is on loopback and answers
after a second. Whole runs in one process (`engine: local`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import yaml

import clipmill
from benchmarks.embed import picture
from clipmill.pipeline.dataset.shards import ShardMetadata

HERE = Path(__file__).parent
STAGES = HERE / "feed_stages.py"
RATES = (300, 2500)
CONCURRENCIES = (None, 64, 256)
PREPARATION_CPUS = 8
DECODE_SECONDS = 1 / 650  # what a core here takes for a kept frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("accelerator", "servers", "memory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--clips", type=int, default=4000, help="clips for the accelerator")
    parser.add_argument("--shards", type=int, default=1000, help="shards for memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_pictures(place)
        if "accelerator" in arguments.parts:
            accelerator(place, arguments.clips)
            decoding(place)
        if "servers" in arguments.parts:
            servers(place)
        if "memory" in arguments.parts:
            memory(place, arguments.shards)


def make_pictures(place: Path) -> None:
    (place / "pictures").mkdir()
    for seed in range(8):
        (place / "pictures" / f"{seed}.jpg").write_bytes(picture(seed, 384, 682))


def recipe(
    place: Path, name: str, stages: dict[str, Any], *, videos: int, a_shard: int, **clips: Any
) -> Path:
    """A recipe over made-up videos; `stages` come after their clips and frames."""
    listed = place / f"{name}.txt"
    listed.write_text("".join(f"https://films.test/{number}\n" for number in range(videos)))
    path = place / f"{name}.yaml"
    made = {"stage": f"{STAGES}:MakeClips", "pictures": str(place / "pictures"), **clips}
    body = {
        "sources": [{"path": str(listed)}],
        "shard_videos": a_shard,
        "engine": "local",
        "stages": {"name_videos": {"stage": f"{STAGES}:NameVideos"}, "split_clips": made, **stages},
    }
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def run(path: Path, until: str | None = None) -> None:
    """Runs a recipe, on a dataset beside it."""
    clipmill.run(path, dataset=path.with_suffix(""), until=until)


# The accelerator


def accelerator(place: Path, clips: int) -> None:
    print(
        f"\nStand-in accelerator; {PREPARATION_CPUS} threads sleep {DECODE_SECONDS * 1000:.1f} ms "
        "an image instead of decoding; 4 images a clip, batches of 32, shards of 256 clips\n"
    )
    print("| images/s that it can do | busy | images |\n|---|---|---|")
    for rate in RATES:
        videos = max(8, round(clips * rate / max(RATES) / 32))
        report = place / f"rate{rate}.txt"
        path = recipe(
            place,
            f"rate{rate}",
            {
                "embed_clips": {
                    "stage": f"{STAGES}:EmbedStandIn",
                    "images_per_second": float(rate),
                    "decode_seconds": DECODE_SECONDS,
                    "cpus": float(PREPARATION_CPUS),
                    "report": str(report),
                }
            },
            videos=videos,
            a_shard=8,
        )
        run(path, until="split_clips")
        run(path)
        busy, whole, images = map(float, report.read_text().split())
        print(f"| {rate} | {busy / whole:.0%} | {images:.0f} |", flush=True)


def decoding(place: Path) -> None:
    """How many real JPEGs a core prepares, and so how many CPUs an accelerator needs."""
    import numpy as np

    from clipmill.stages.models.embedders import ImagePreparation

    prepare = ImagePreparation((224, 224), (0.5,) * 3, (0.5,) * 3, "crop", "bicubic", 0)
    jpegs = [path.read_bytes() for path in sorted((place / "pictures").glob("*.jpg"))]
    out = np.empty((224, 224, 3), np.uint8)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    began = time.thread_time()
    for _ in range(12):
        for jpeg in jpegs:
            prepare.into(jpeg, out)
    rate = 12 * len(jpegs) / (time.thread_time() - began)
    cv2.setNumThreads(threads)
    print(
        f"\nA core decodes and resizes {rate:.0f} kept frames of 682 × 384 a second, to 224 × 224: "
        f"2500 images/s need {2500 / rate:.1f} CPUs."
    )


# Servers


@contextlib.contextmanager
def slow_server(seconds: float) -> Iterator[str]:
    """A loopback server's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_server", str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def servers(place: Path) -> None:
    print("\nServer on loopback that answers after 1 s: its mean load over the run's requests\n")
    print(
        "| stage | server_concurrency | mean load | of the concurrency | requests "
        "| worker, ms of processor time a request | server |"
    )
    print("|---|---|---|---|---|---|---|")
    for concurrency in CONCURRENCIES:
        for label in ("summarize_captions", "caption_frames"):
            one_server(place, label, concurrency)


def one_server(place: Path, label: str, concurrency: int | None) -> None:
    most = concurrency or 8
    # For about 25 s; a clip is one summary, but a coarse caption and four fine ones.
    each = 1 if label == "summarize_captions" else 5
    videos = max(4, round(25 * most / each / 32))
    with slow_server(1.0) as address:
        stage: dict[str, Any] = {"model": f"{address}/v1#m"}
        if concurrency is not None:
            stage["server_concurrency"] = concurrency
        before: dict[str, Any] = {}
        if label == "summarize_captions":
            before = {"caption_frames": {"stage": f"{STAGES}:WriteCaptions"}}
        else:
            stage |= {"skip_similar": 0, "fine_at_least": 4}
        name = f"{label}-{concurrency}"
        path = recipe(place, name, {**before, label: stage}, videos=videos, a_shard=2)
        run(path, until=next(iter(before), "split_clips"))
        run(path)
        with urllib.request.urlopen(f"{address}/load") as answer:
            load = json.loads(answer.read())
    mean = load["request_seconds"] / load["seconds"]
    shown = concurrency or f"{most} (default)"
    requests = load["requests"]
    own = used_by(path.with_suffix("") / label) / requests * 1000
    servers = load["cpu_seconds"] / requests * 1000
    print(
        f"| {label} | {shown} | {mean:.1f} | {mean / most:.0%} | {requests} | {own:.2f} "
        f"| {servers:.2f} |",
        flush=True,
    )


def used_by(folder: Path) -> float:
    """The processor seconds that shards of a step took, without opening its model."""
    footers = [ShardMetadata.read(path) for path in folder.glob("*/*.parquet")]
    return sum((one.cpu_seconds or 0) - (one.opening_cpu_seconds or 0) for one in footers)


# Memory


def memory(place: Path, shards: int) -> None:
    """The process's memory at tenths of a run over many small shards."""
    path = recipe(
        place,
        "memory",
        {
            "embed_clips": {
                "stage": f"{STAGES}:EmbedStandIn",
                "images_per_second": 1e6,
                "decode_seconds": 0.0,
                "report": str(place / "memory-report.txt"),
            }
        },
        videos=shards,
        a_shard=1,
        clips=8,
    )
    run(path, until="split_clips")
    done, seen = threading.Event(), []

    def watch() -> None:
        while not done.wait(0.2):
            count = sum(1 for _ in path.with_suffix("").glob("embed_clips/*/*.parquet"))
            seen.append((count, resident_megabytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(path)
    done.set()
    watcher.join()
    print(f"\n| of {shards} shards | resident MB |\n|---|---|")
    for tenth in range(1, 11):
        reached = [size for count, size in seen if count >= tenth * shards / 10]
        if reached:
            print(f"| {tenth * shards // 10} | {reached[0]:.0f} |")


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()

"""Measures cluster_clips over many clips in a whole run, and its centres against other ways.

    python -m benchmarks.signal_models --stage cluster_clips --clips 1000000 --folder DIR
    python -m benchmarks.signal_models --stage cluster_clips --clips 10000000 --unstored
    python -m benchmarks.signal_models --stage cluster_clips --quality

The first makes a dataset of that many random clips (kept in DIR), finds centres and assigns all
clips, and then the clips of one shard that is added. The second does so with vectors that are made
shard by shard and never stored. The third compares the mean distance from the centres, and whether
two runs agree, with Lloyd's algorithm over all vectors and with scikit-learn's MiniBatchKMeans.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks import embedded_videos
from benchmarks.embedded_videos import one_frame_each, vectors
from clipmill.stages.cluster_clips import ClusterClips
from clipmill.stages.models.clusters import Centres, fit_centres
from clipmill.stages.models.integer_vectors import directions
from clipmill.stages.models.k_means import find_centres

CLIPS_A_VIDEO = 1000
CLIPS_A_SHARD = 10 * CLIPS_A_VIDEO


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--clusters", type=int, help="by default the square root of the clips")
    parser.add_argument("--folder", type=Path, default=Path("clustered"))
    parser.add_argument("--unstored", action="store_true")
    parser.add_argument("--quality", action="store_true")
    given = parser.parse_args(options)
    if given.quality:
        quality(given.clips, given.dimensions, given.clusters or 300)
    elif given.unstored:
        unstored(given.clips, given.dimensions)
    else:
        whole_run(given.clips, given.dimensions, given.clusters, given.folder)


def whole_run(clips: int, dimensions: int, clusters: int | None, folder: Path) -> None:
    own = Path(embedded_videos.__file__)
    recipe = {
        "sources": [{"path": "urls.txt"}],
        "shard_videos": 10,
        "engine": "local",
        "stages": {
            "list_videos": {"stage": f"{own}:ListVideos"},
            "make_clips": {"stage": f"{own}:MakeClips", "clips": CLIPS_A_VIDEO},
            "embed_at_random": {"stage": f"{own}:EmbedClipsAtRandom", "dimensions": dimensions},
            "cluster_clips": {
                "embeddings": "embed_at_random",
                **({"clusters": clusters} if clusters else {}),
            },
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    videos = clips // CLIPS_A_VIDEO
    _list(folder, videos)
    print("| | seconds | CPU seconds | MB at most | finding centres, s |\n|---|---|---|---|---|")
    _run(folder, "making clips and embeddings", "--until", "embed_at_random")
    _run(folder, "finding centres, assigning all clips")
    _list(folder, videos + 10)
    _run(folder, f"{10 * CLIPS_A_VIDEO:,} clips more: embedded", "--until", "embed_at_random")
    _run(folder, f"{10 * CLIPS_A_VIDEO:,} clips more: assigned")


def _list(folder: Path, videos: int) -> None:
    (folder / "urls.txt").write_text("".join(f"https://made.test/{i}\n" for i in range(videos)))


def _run(folder: Path, what: str, *more: str) -> None:
    """A run in a process of its own; its cost, and the time between the lines of the fit."""
    command = [sys.executable, "-m", "clipmill.jobs.cli", "run", "recipe.yaml"]
    command += ["--dataset", "dataset", *more]
    began = time.monotonic()
    fit_seconds, fit_began = 0.0, 0.0
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "fitting it" in line:
            fit_began = time.monotonic()
        elif re.search(r"fitted to [\d,]+ rows\.", line):
            fit_seconds = time.monotonic() - fit_began
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("".join(said))
    print(
        f"| {what} | {time.monotonic() - began:.1f} | {used.ru_utime + used.ru_stime:.1f} | "
        f"{used.ru_maxrss / 1024:.0f} | {fit_seconds:.1f} |",
        flush=True,
    )


def unstored(clips: int, dimensions: int) -> None:
    """Finds centres and assigns all clips, apart from what reading and writing them takes."""
    print("| | clips | CPU seconds | MB at most |\n|---|---|---|---|")
    spent = 0.0

    def shards() -> Iterator[pa.Table]:
        nonlocal spent
        for shard in range(clips // CLIPS_A_SHARD):
            began = time.process_time()
            numbers = np.random.default_rng(shard).standard_normal(
                (CLIPS_A_SHARD, dimensions), np.float32
            )
            ids = [f"clip-{shard}-{i}" for i in range(CLIPS_A_SHARD)]
            table = pa.table({"clip_id": ids, "embeddings": one_frame_each(numbers)})
            spent += time.process_time() - began
            yield table

    began = time.process_time()
    sample = ClusterClips.model_fields["sample_clips"].default
    fitted = fit_centres(shards(), clusters=None, sample=sample, seed=0)
    assert fitted is not None
    _say(f"finding {len(fitted):,} centres", clips, time.process_time() - began - spent)
    began, spent = time.process_time(), 0.0
    centres = Centres(fitted)
    for table in shards():
        centres.of(table)
    _say("assigning", clips, time.process_time() - began - spent)


def _say(what: str, clips: int, seconds: float) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {what} | {clips:,} | {seconds:.0f} | {most:.0f} |", flush=True)


def quality(n: int, d: int, clusters: int) -> None:
    """The mean of 1 − cosine over all vectors, for centres found in several ways."""
    rng = np.random.default_rng(1)
    everything = vectors(rng, n, d)
    ids = [f"clip-{i}" for i in range(n)]
    table = pa.table({"clip_id": ids, "embeddings": one_frame_each(everything)})
    whole = directions(everything).astype(np.float32)
    shuffled = rng.permutation(n)
    print(f"\n{n:,} clips of {d} numbers, {clusters} clusters\n")
    print("| centres | CPU seconds | mean distance | same clusters in another order |")
    print("|---|---|---|---|")

    def ours(sample: int) -> Callable[[np.ndarray], np.ndarray]:
        def find(order: np.ndarray) -> np.ndarray:
            pieces = [table.take(part) for part in np.array_split(order, 20)]
            fitted = fit_centres(pieces, clusters=clusters, sample=sample, seed=0)
            assert fitted is not None
            return np.stack(fitted["centre"].to_pylist()).astype(np.float32)

        return find

    def mini_batch(order: np.ndarray) -> np.ndarray:
        from sklearn.cluster import MiniBatchKMeans

        model: Any = MiniBatchKMeans(clusters, batch_size=4096, random_state=0, n_init=1)
        for part in np.array_split(order, max(1, n // 4096)):
            model.partial_fit(everything[part].astype(np.float32))
        return directions(model.cluster_centers_).astype(np.float32)

    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "Lloyd over all vectors": lambda order: find_centres(whole[order], clusters, 0),
        "sample of 16 per cluster": ours(16 * clusters),
        "sample of 64 per cluster": ours(64 * clusters),
        "sample of 256 per cluster": ours(256 * clusters),
        "scikit-learn's MiniBatchKMeans": mini_batch,
    }
    for name, find in ways.items():
        began = time.process_time()
        centres = find(np.arange(n))
        seconds = time.process_time() - began
        numbers, away = _assigned(table, centres)
        again = "" if name.startswith("Lloyd") else _assigned(table, find(shuffled))[0]
        same = "" if isinstance(again, str) else bool(np.array_equal(numbers, again))
        print(f"| {name} | {seconds:.1f} | {away.mean():.5f} | {same} |", flush=True)


def _assigned(table: pa.Table, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fitted = pa.table(
        {
            "cluster": np.arange(len(centres), dtype=np.int32),
            "centre": list(centres.astype(np.int16)),
        }
    )
    return Centres(fitted).of(table)

"""Measures near-duplicate removal: its recall, its growth with the clips, and what all pairs cost.

    python -m benchmarks.near

Embeddings are distributed like an image model's: around a common direction (two random ones have a
cosine of 0.5), half of the rest in topics of very unequal sizes. For a tenth of the clips, another
clip is planted just within the threshold; these pairs are the hardest to find. Seconds are
processor time, which other work on the machine affects little. All pairs are compared by matrix
products, for larger N over a part of the rows and scaled up.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.pipeline.subsets.clusters import assign_clusters
from clipmill.pipeline.subsets.near import near_hashes, near_vectors

MIN_COSINE = 0.95
MAX_DISTANCE = 6
BATCH = 10_000
PLANTED = BATCH // 10
TOPICS = 500
ALL_PAIRS_ROWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--clips",
        type=int,
        nargs="+",
        default=[50_000, 100_000, 200_000, 400_000],
        help=f"numbers of clips, multiples of {BATCH}",
    )
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=100)
    arguments = parser.parse_args()
    print(
        f"\nmin_cosine {MIN_COSINE}, {arguments.dimensions} numbers per clip; max_distance "
        f"{MAX_DISTANCE}, 4 hashes a clip; {arguments.clusters} clusters\n"
    )
    print(
        "| clips | by embedding, s | growth | recall | all pairs, s | ratio | by hashes, s | "
        "recall | clusters, s |\n|---|---|---|---|---|---|---|---|---|"
    )
    before: tuple[int, float] | None = None
    for n in arguments.clips:
        before = measure(n, arguments.dimensions, arguments.clusters, before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory: {peak:.0f} MB")


def measure(n: int, d: int, clusters: int, before: tuple[int, float] | None) -> tuple[int, float]:
    ranks = np.random.default_rng(n).permutation(n)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        made = cpu_seconds(lambda: [0 for _ in vector_rows(n, d, ranks)])[0]
        by_vectors, gone = cpu_seconds(
            lambda: near_vectors(
                vector_rows(n, d, ranks), n, min_cosine=MIN_COSINE, scratch=scratch
            )
        )
        by_vectors -= made
        all_pairs = all_pairs_seconds(n, d, ranks)
        made_hashes = cpu_seconds(lambda: [0 for _ in hash_rows(n, ranks)])[0]
        by_hashes, gone_hashes = cpu_seconds(
            lambda: near_hashes(hash_rows(n, ranks), n, max_distance=MAX_DISTANCE)
        )
        in_clusters = (
            cpu_seconds(
                lambda: assign_clusters(
                    vector_rows(n, d, ranks),
                    n,
                    clusters=clusters,
                    seed=1,
                    scratch=scratch,
                    reread=lambda: vector_rows(n, d, ranks),
                )
            )[0]
            - 2 * made
        )
    growth = f"{by_vectors / before[1]:.2f} ({n / before[0]:.2g}×)" if before else ""
    print(
        f"| {n:,} | {by_vectors:.1f} | {growth} | {recall(gone, ranks):.3f} | {all_pairs:.1f} | "
        f"{all_pairs / by_vectors:.1f} | {by_hashes - made_hashes:.1f} | "
        f"{recall(gone_hashes, ranks):.3f} | {in_clusters:.1f} |",
        flush=True,
    )
    return n, by_vectors


def recall(gone: np.ndarray, ranks: np.ndarray) -> float:
    """The share of planted pairs whose later clip is removed."""
    pairs = ranks.reshape(-1, BATCH)
    later = np.maximum(pairs[:, :PLANTED], pairs[:, -PLANTED:])
    return float(np.isin(later, gone).mean())


def vector_rows(n: int, d: int, ranks: np.ndarray) -> pa.RecordBatchReader:
    kind = pa.list_(pa.list_(pa.float32()))
    return batches(n, ranks, "embeddings", kind, lambda rng: frames(vectors(rng, d)))


def batches(
    n: int,
    ranks: np.ndarray,
    column: str,
    kind: pa.DataType,
    make: Callable[[np.random.Generator], pa.Array],
) -> pa.RecordBatchReader:
    schema = pa.schema([("rank", pa.int64()), (column, kind)])

    def made() -> Iterator[pa.RecordBatch]:
        for start in range(0, n, BATCH):
            yield pa.record_batch(
                [pa.array(ranks[start : start + BATCH]), make(np.random.default_rng(start))],
                schema=schema,
            )

    return pa.RecordBatchReader.from_batches(schema, made())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def vectors(rng: np.random.Generator, d: int) -> np.ndarray:
    world = np.random.default_rng(0)
    middle, topics = unit(world.normal(size=d)), unit(world.normal(size=(TOPICS, d)))
    own = unit(rng.standard_normal((BATCH, d), np.float32))
    made = unit(np.sqrt(0.5) * middle + 0.5 * topics[rng.zipf(1.3, BATCH) % TOPICS] + 0.5 * own)
    base, noise = made[:PLANTED], rng.normal(size=(PLANTED, d))
    noise = unit(noise - (noise * base).sum(axis=1, keepdims=True) * base)
    cosines = rng.uniform(MIN_COSINE + 0.001, MIN_COSINE + 0.006, (PLANTED, 1))
    made[-PLANTED:] = cosines * base + np.sqrt(1 - cosines**2) * noise
    return made.astype(np.float32)


def frames(rows: np.ndarray) -> pa.Array:
    """One frame per clip."""
    m, d = rows.shape
    inner = pa.ListArray.from_arrays(
        np.arange(0, m * d + 1, d, dtype=np.int32), pa.array(rows.reshape(-1))
    )
    return pa.ListArray.from_arrays(np.arange(m + 1, dtype=np.int32), inner)


def hash_rows(n: int, ranks: np.ndarray) -> pa.RecordBatchReader:
    def make(rng: np.random.Generator) -> pa.Array:
        hashes = rng.integers(0, 2**64, (BATCH, 4), dtype=np.uint64)
        copies = hashes[:PLANTED].copy()
        for _ in range(MAX_DISTANCE):
            copies ^= np.uint64(1) << rng.integers(0, 64, copies.shape, dtype=np.uint64)
        hashes[-PLANTED:] = copies
        return pa.ListArray.from_arrays(
            np.arange(0, 4 * BATCH + 1, 4, dtype=np.int32), pa.array(hashes.reshape(-1))
        )

    return batches(n, ranks, "frame_hashes", pa.list_(pa.uint64()), make)


def all_pairs_seconds(n: int, d: int, ranks: np.ndarray) -> float:
    """Seconds to compare each vector with all earlier ones: measured on some rows, scaled up."""
    some = min(n, ALL_PAIRS_ROWS)
    everything = np.concatenate(
        [
            batch["embeddings"].flatten().flatten().to_numpy().reshape(-1, d)
            for batch in vector_rows(n, d, ranks)
        ]
    )

    def compare() -> None:
        for start in range(0, some, 500):
            products = everything[start : start + 500] @ everything.T
            (products >= MIN_COSINE).any(axis=1)

    # All products were computed, but half of them would be enough.
    return cpu_seconds(compare)[0] * n / some / 2


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()

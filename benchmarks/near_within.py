"""Measures near-duplicates within clusters: recall, and what comparing new clips costs.

    python -m benchmarks.near_within [--clips 100000 1000000] [--min-cosine 0.95]

The vectors, and pairs planted just within the threshold, are those of `benchmarks.near`. Pairs in
different clusters are not found, so recall depends on the number of clusters: once the square root
of the number of clips, and once a quarter of that. Then a hundredth of the clips is taken as new.
Seconds are processor time, without making the vectors.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import near
from benchmarks.near import BATCH, cpu_seconds, recall, vector_rows
from clipmill.pipeline.subsets.compared_clips import compared_clips
from clipmill.pipeline.subsets.near import near_vectors
from clipmill.pipeline.subsets.near_within import NewClips, near_within
from clipmill.stages.models.clusters import Centres, fit_centres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--clips", type=int, nargs="+", default=[100_000], help=f"multiples of {BATCH}"
    )
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--min-cosine", type=float, default=near.MIN_COSINE)
    arguments = parser.parse_args()
    near.MIN_COSINE = arguments.min_cosine  # at which pairs are planted
    print(f"\nmin_cosine {near.MIN_COSINE}, {arguments.dimensions} numbers per clip\n")
    print(
        "| clips | clusters | largest | within clusters, s | recall | a hundredth is new, s | "
        "nothing is new, s | by `near_vectors`, s | recall |\n|---|---|---|---|---|---|---|---|---|"
    )
    for n in arguments.clips:
        measure(n, arguments.dimensions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory: {peak:.0f} MB")


def measure(n: int, d: int) -> None:
    ranks = np.random.default_rng(n).permutation(n)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        made = cpu_seconds(lambda: [0 for _ in vector_rows(n, d, ranks)])[0]
        plain, gone = cpu_seconds(
            lambda: near_vectors(
                vector_rows(n, d, ranks), n, min_cosine=near.MIN_COSINE, scratch=scratch
            )
        )
        others = f"{plain - made:.1f} | {recall(gone, ranks):.3f}"
        for clusters in (round(n**0.5), round(n**0.5 / 4)):
            groups = clustered(n, d, ranks, clusters)
            place = scratch / f"dataset-{clusters}"
            old = np.flatnonzero(np.arange(n) % 100)
            compare(place, n, d, ranks, groups, old)
            later, gone = compare(place, n, d, ranks, groups, np.arange(n))
            again, _ = compare(place, n, d, ranks, groups, np.arange(n))
            whole, same = compare(scratch / f"whole-{clusters}", n, d, ranks, groups, np.arange(n))
            assert np.array_equal(np.sort(gone), np.sort(same))
            print(
                f"| {n:,} | {clusters:,} | {np.bincount(groups).max():,} | {whole - made:.1f} | "
                f"{recall(gone, ranks):.3f} | {later - made:.1f} | {again:.1f} | {others} |",
                flush=True,
            )


def clustered(n: int, d: int, ranks: np.ndarray, clusters: int) -> np.ndarray:
    """The cluster of each rank."""
    groups = np.empty(n, np.int64)

    def tables() -> Iterator[pa.Table]:
        for batch in vector_rows(n, d, ranks):
            ids = batch["rank"].cast(pa.string())
            yield pa.table(
                {"rank": batch["rank"], "clip_id": ids, "embeddings": batch["embeddings"]}
            )

    fitted = fit_centres(tables(), clusters=clusters, sample=64 * clusters, seed=0)
    assert fitted is not None
    centres = Centres(fitted)
    for table in tables():
        groups[table["rank"].to_numpy()] = centres.of(table)[0]
    return groups


def compare(
    dataset: Path, n: int, d: int, ranks: np.ndarray, groups: np.ndarray, some: np.ndarray
) -> tuple[float, np.ndarray]:
    """Seconds to find the duplicates among some ranks, and these."""
    scratch = dataset.parent
    with duckdb.connect() as connection:
        connection.execute("ATTACH ':memory:' AS work")
        candidates = pa.table({"rank": some, "clip_id": some, "grp": groups[some]})
        connection.register("given", candidates)
        connection.execute(
            "CREATE TABLE work.grouped AS SELECT rank, CAST(clip_id AS VARCHAR) AS clip_id, "
            "CAST(grp AS VARCHAR) AS grp, 0::BIGINT AS _base, 0::INTEGER AS _retry FROM given"
        )

        def fresh_rows() -> pa.RecordBatchReader:
            fresh = connection.execute("SELECT CAST(clip_id AS BIGINT) AS c, rank FROM work.fresh")
            found = fresh.fetchnumpy()
            place = np.full(n, -1)
            place[found["c"]] = found["rank"]
            source = vector_rows(n, d, ranks)

            def batches() -> Iterator[pa.RecordBatch]:
                for batch in source:
                    own = pa.array(place[batch["rank"].to_numpy()])
                    kept = batch.set_column(0, "rank", own).filter(pc.greater_equal(own, 0))
                    if kept.num_rows:
                        yield kept

            return pa.RecordBatchReader.from_batches(source.schema, batches())

        with compared_clips(dataset, "e", "1", "cluster", near.MIN_COSINE, scratch) as compared:
            return cpu_seconds(
                lambda: near_within(
                    connection,
                    compared,
                    NewClips(fresh_rows, dict),
                    min_cosine=near.MIN_COSINE,
                    scratch=scratch,
                )
            )


if __name__ == "__main__":
    main()

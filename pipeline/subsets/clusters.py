"""Clusters the clips that reach a rule by their embeddings.

The centres are found on a sample of bounded size, at the same cost for any number of clips; then
each clip goes to the centre with the largest product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipmill.schemas.errors import UsageError
from clipmill.stages.models.integer_vectors import VectorStore, clip_vectors, random_words
from clipmill.stages.models.k_means import LEAST_SAMPLE, SAMPLE_PER_CLUSTER, find_centres, nearest


def assign_clusters(
    rows: pa.RecordBatchReader,
    n: int,
    *,
    clusters: int,
    seed: int,
    scratch: Path,
    reread: Callable[[], pa.RecordBatchReader],
) -> np.ndarray:
    """The cluster of each rank, int32 of shape (n,), from 0 on; -1 without an embedding.

    `rows` has the columns `rank` (0 to n - 1) and `embeddings`, in any order; `reread` returns the
    same rows again. If there are fewer distinct vectors than clusters, there are fewer clusters;
    likewise if the sample (64 clips per cluster, and at least 20,000) has fewer. It is stored in
    `scratch` and chosen by `seed`, as are the first centres.
    """
    if clusters < 1:
        raise UsageError(f"clusters: {clusters} is not a number of clusters; give 1 or more")
    assigned = np.full(n, -1, np.int32)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        size = max(SAMPLE_PER_CLUSTER * clusters, LEAST_SAMPLE)
        mixed = _mixed(n, seed)
        wanted = mixed <= np.partition(mixed, size - 1)[size - 1] if n > size else None
        sample = VectorStore(rows, Path(folder) / "sample", wanted)
        if not len(sample):
            return assigned
        vectors = sample.take(np.argsort(mixed[sample.ranks]))
    centres = find_centres(vectors, clusters, seed)
    for ranks, some in clip_vectors(reread()):
        assigned[ranks] = nearest(some.astype(np.float32), centres)[0]
    return assigned


def _mixed(n: int, seed: int) -> np.ndarray:
    """A distinct number for each rank, in an order that depends only on the seed."""
    mixed = np.arange(n, dtype=np.uint64) + random_words(f"sample {seed}", 1)[0]
    # The finaliser of SplitMix64: every bit of the result depends on every bit of the number.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))

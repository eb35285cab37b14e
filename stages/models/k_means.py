"""Spherical k-means in integers: the same centres on every machine.

scikit-learn's k-means is not used: its sums, and so its clusters, change with the number of
threads. Here vectors and centres are integers (see `integer_vectors.py`), so that every product
and sum is exact, and ties go to the centre with the lowest number.
"""

from __future__ import annotations

import itertools

import numpy as np

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.integer_vectors import directions, random_words

# Vectors per centre in the sample on which centres are found, and the smallest sample.
SAMPLE_PER_CLUSTER = 64
LEAST_SAMPLE = 20_000
ROUNDS = 20
# Vectors per centre that are searched for the first centres, and the fewest.
_SEEDS_PER_CLUSTER, _LEAST_SEEDS = 8, 4096
_ROWS_AT_A_TIME = 2048


def find_centres(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Centres of vectors in random order, as integers in float32.

    Lloyd's algorithm from spread-out first centres, until nothing moves or ROUNDS are over. There
    are fewer centres if the vectors have fewer distinct values.
    """
    centres = _first_centres(vectors, clusters, seed)
    before = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        labels, products = nearest(vectors, centres)
        if np.array_equal(labels, before):
            break
        before = labels
        sums = _sums(vectors, labels, len(centres))
        moved = directions(sums).astype(np.float32)
        # An empty cluster, or one whose members cancel out, restarts at the vector that fits its
        # own centre worst; in a tie, at the first.
        lost = np.flatnonzero(~moved.any(axis=1))
        moved[lost] = vectors[np.argsort(products, kind="stable")[: len(lost)]]
        centres = moved
    return centres


def _first_centres(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Greedy k-means++: draws candidates for each next centre, with probabilities that grow with
    their distance from earlier centres, and takes the one that leaves the smallest distances.
    """
    pool = vectors[: max(_SEEDS_PER_CLUSTER * clusters, _LEAST_SEEDS)]
    squares = np.einsum("ij,ij->i", pool, pool).astype(np.int64)
    n_candidates = 1 + clusters.bit_length() // 2
    picks = random_words(f"centres {seed}", clusters * n_candidates)
    distances = np.ones(len(pool), np.int64)
    centres: list[np.ndarray] = []
    for own_picks in picks.reshape(clusters, n_candidates):
        beat()
        running = np.cumsum(distances)
        if not running[-1]:
            break  # every vector of the pool is a centre
        candidates = np.searchsorted(running, own_picks % np.uint64(running[-1]), side="right")
        products = (pool @ pool[candidates].T).astype(np.int64)
        # The squares of the distances, exact: zero only for equal vectors.
        away = squares[:, None] + squares[candidates] - 2 * products
        if centres:
            away = np.minimum(away, distances[:, None])
        best = int(away.sum(axis=0).argmin())
        centres.append(pool[candidates[best]])
        distances = away[:, best]
    return np.stack(centres)


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the centre with the largest product (the first in a tie), and the product."""
    labels, products = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        beat()
        part = slice(start, start + _ROWS_AT_A_TIME)
        found = vectors[part] @ centres.T
        labels[part] = found.argmax(axis=1)
        products[part] = np.take_along_axis(found, labels[part, None], axis=1)[:, 0]
    return labels, products


def _sums(vectors: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """The sum of each cluster's vectors: integers in float64, far below 2**53."""
    order = np.argsort(labels, kind="stable")
    sums = np.zeros((clusters, vectors.shape[1]))
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        part = order[start : start + _ROWS_AT_A_TIME]
        own = labels[part]
        rows = vectors[part].astype(np.float64)
        begins = [*np.flatnonzero(np.diff(own, prepend=-1)).tolist(), len(own)]
        for begin, end in itertools.pairwise(begins):  # faster than np.add.reduceat
            sums[own[begin]] += rows[begin:end].sum(axis=0)
    return sums

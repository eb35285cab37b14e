"""Clusters group similar vectors, and depend only on vectors and seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clipmill.pipeline.subsets.clusters import assign_clusters
from clipmill.schemas.errors import UsageError
from tests.pipeline.subsets.near_rows import (
    EMBEDDINGS,
    MACHINES,
    on_another_machine,
    reader,
    unit,
    vector_rows,
)


def topics(n: int, k: int, d: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around `k` centres, and the centre of each; the first centre has the most."""
    rng = np.random.default_rng(seed)
    whose = np.minimum(rng.geometric(2 / k, n) - 1, k - 1)
    centres = unit(rng.normal(size=(k, d)))
    return unit(centres[whose] + 0.3 * unit(rng.normal(size=(n, d)))), whose


def assigned(vectors: np.ndarray, clusters: int, tmp_path, seed: int = 1, **rows) -> np.ndarray:
    n = max(rows["ranks"]) + 1 if "ranks" in rows else len(vectors)
    return assign_clusters(
        vector_rows(vectors, **rows),
        n,
        clusters=clusters,
        seed=seed,
        scratch=tmp_path,
        reread=lambda: vector_rows(vectors, **rows),
    )


def purity(labels: np.ndarray, whose: np.ndarray) -> float:
    return sum(np.bincount(whose[labels == label]).max() for label in np.unique(labels)) / len(
        labels
    )


def test_topics_are_found(tmp_path):
    vectors, whose = topics(3000, 12)
    labels = assigned(vectors, 12, tmp_path)
    assert labels.dtype == np.int32
    assert set(labels.tolist()) == set(range(12))
    assert purity(labels, whose) > 0.95
    # Each clip is nearest to the mean of its own cluster, apart from rounding.
    means = unit(np.stack([vectors[labels == label].sum(axis=0) for label in range(12)]))
    assert (np.argmax(vectors @ means.T, axis=1) == labels).mean() > 0.99
    assert list(tmp_path.iterdir()) == []


def test_clips_beyond_the_sample_are_assigned(tmp_path):
    vectors, whose = topics(25_000, 5, d=16)
    labels = assigned(vectors, 5, tmp_path)
    assert labels.min() == 0
    assert purity(labels, whose) > 0.9


def test_clusters_depend_on_the_seed_not_on_row_order(tmp_path):
    vectors, _ = topics(2500, 40)
    whole = assigned(vectors, 30, tmp_path)
    order = np.random.default_rng(1).permutation(2500)
    assert assigned(vectors[order], 30, tmp_path, ranks=order, batch=77).tolist() == whole.tolist()
    assert assigned(vectors, 30, tmp_path, seed=2).tolist() != whole.tolist()


PROGRAM = """
import pathlib, tempfile
from tests.pipeline.subsets.test_clusters import assigned, digest, topics
print(digest(assigned(topics(4000, 40)[0], 50, pathlib.Path(tempfile.gettempdir()))))
"""


def digest(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.tobytes()).hexdigest()


def test_clusters_do_not_depend_on_threads_or_instructions():
    assert len({on_another_machine(PROGRAM, machine) for machine in MACHINES}) == 1


def test_clip_without_an_embedding_has_no_cluster(tmp_path):
    clips = [[[1.0, 0.0]], None, [], [[0.0, 0.0]], [[0.0, 1.0]]]

    def rows():
        return reader("embeddings", EMBEDDINGS, clips, [0, 1, 2, 3, 5])

    labels = assign_clusters(rows(), 6, clusters=2, seed=1, scratch=tmp_path, reread=rows)
    assert sorted(labels.tolist()) == [-1, -1, -1, -1, 0, 1]
    assert labels[0] != labels[5]
    nobody = assign_clusters(
        reader("embeddings", EMBEDDINGS, []), 3, clusters=2, seed=1, scratch=tmp_path, reread=rows
    )
    assert nobody.tolist() == [-1, -1, -1]


def test_more_clusters_than_distinct_vectors_give_one_each(tmp_path):
    three = np.repeat(np.eye(3), 5, axis=0)
    labels = assigned(three, 10, tmp_path)
    assert set(labels.tolist()) == {0, 1, 2}
    for start in (0, 5, 10):
        assert len(set(labels[start : start + 5].tolist())) == 1
    assert assigned(np.eye(3), 1, tmp_path).tolist() == [0, 0, 0]


def test_cluster_that_loses_all_members_is_restarted(tmp_path):
    """Two opposite vectors cancel out in one cluster; with more clusters, none stays empty."""
    vectors = np.concatenate([np.eye(8), -np.eye(8)])
    labels = assigned(vectors, 16, tmp_path)
    assert sorted(labels.tolist()) == list(range(16))
    assert set(assigned(vectors, 1, tmp_path).tolist()) == {0}


def test_zero_clusters_are_refused(tmp_path):
    with pytest.raises(UsageError, match="clusters: 0 is not a number of clusters"):
        assigned(np.eye(3), 0, tmp_path)

"""Near-duplicates: which clips are removed, the recall, and that nothing else matters."""

from __future__ import annotations

import numpy as np
import pytest

from clipmill.pipeline.subsets import near
from clipmill.pipeline.subsets.near import near_hashes, near_vectors
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.subsets.near_rows import (
    EMBEDDINGS,
    MACHINES,
    beside,
    cone,
    hash_rows,
    on_another_machine,
    reader,
    unit,
    vector_rows,
)


def by_brute_force(vectors: np.ndarray, min_cosine: float) -> list[int]:
    cosines = unit(vectors) @ unit(vectors).T
    return np.flatnonzero((np.tril(cosines, -1) >= min_cosine).any(axis=1)).tolist()


def with_pairs(n: int, low: float, high: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A cone whose last tenth is close to members of the first tenth; returns these, too."""
    vectors = cone(n, seed=seed)
    planted = np.arange(n - n // 10, n)
    cosines = np.random.default_rng(seed).uniform(low, high, len(planted))
    vectors[planted] = beside(vectors[: len(planted)], cosines)
    return vectors, planted


def test_clip_near_an_earlier_one_is_removed_even_if_that_is_removed(tmp_path):
    """Of a chain in which each clip is only near the next, the first one stays."""
    angles = np.radians([0, 15, 30, 90, 100])
    chain = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    limit = np.cos(np.radians(16))
    assert near_vectors(vector_rows(chain), 5, min_cosine=limit, scratch=tmp_path).tolist() == [
        1,
        2,
        4,
    ]
    # With another order of preference, another one stays.
    ranks = [2, 0, 1, 3, 4]
    assert near_vectors(
        vector_rows(chain, ranks), 5, min_cosine=limit, scratch=tmp_path
    ).tolist() == [1, 2, 4]


def test_clip_is_the_mean_of_its_frames_directions(tmp_path):
    """A frame's length doesn't count, only its direction."""
    one = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    clips = [
        one,
        [[2.0, 0.0, 0.0], [0.0, 9.0, 0.0]],
        [[1.0, 0.0, 0.0]],
        [[0.5, 0.5, 0.0]],
        [[0.0, 0.0, 1.0]],
    ]
    rows = reader("embeddings", EMBEDDINGS, clips)
    assert near_vectors(rows, 5, min_cosine=0.999, scratch=tmp_path).tolist() == [1, 3]


def test_clips_without_a_direction_or_rank_stay(tmp_path):
    clips = [
        [[1.0, 0.0]],
        None,
        [],
        [[0.0, 0.0]],
        [[float("nan"), 1.0]],
        [[1.0, 0.0], [-1.0, 0.0]],
        [[1.0, 0.0]],
        None,
        [],
    ]
    rows = reader("embeddings", EMBEDDINGS, clips, [3, 4, 5, 6, 7, 8, 9, 10, 11], batch=2)
    assert near_vectors(rows, 20, min_cosine=0.9, scratch=tmp_path).tolist() == [9]
    nothing = reader("embeddings", EMBEDDINGS, [])
    assert near_vectors(nothing, 0, min_cosine=0.9, scratch=tmp_path).tolist() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("min_cosine", [0.7, 0.9, 0.99])
def test_few_clips_are_compared_exactly(tmp_path, min_cosine):
    vectors, _ = with_pairs(1500, min_cosine - 0.01, min(1.0, min_cosine + 0.01))
    frames = np.stack([vectors, vectors], axis=1)
    gone = near_vectors(vector_rows(frames), 1500, min_cosine=min_cosine, scratch=tmp_path)
    wanted = by_brute_force(vectors, min_cosine)
    assert len(wanted) > 10
    # Vectors are rounded, so a cosine may be off by 0.0005.
    assert set(by_brute_force(vectors, min_cosine + 5e-4)) <= set(gone.tolist())
    assert set(gone.tolist()) <= set(by_brute_force(vectors, min_cosine - 5e-4))
    assert len(set(wanted) ^ set(gone.tolist())) <= 2


def test_most_pairs_at_the_threshold_are_found_and_no_others(tmp_path):
    vectors, planted = with_pairs(20_000, 0.951, 0.96)
    gone = near_vectors(vector_rows(vectors), 20_000, min_cosine=0.95, scratch=tmp_path)
    assert set(gone.tolist()) <= set(planted.tolist())
    assert len(gone) >= 0.94 * len(planted)


def test_recall_is_as_requested(tmp_path):
    """The formula neither overestimates recall nor searches much longer than necessary."""
    vectors, planted = with_pairs(12_000, 0.9002, 0.902)

    def found(recall: float) -> float:
        return len(
            near_vectors(
                vector_rows(vectors), 12_000, min_cosine=0.9, recall=recall, scratch=tmp_path
            )
        ) / len(planted)

    assert 0.45 < found(0.5) < 0.65
    assert found(0.99) > 0.98


def test_any_number_of_equal_vectors_leaves_one(tmp_path):
    vectors = np.concatenate([np.tile(cone(1, seed=9), (30_000, 1)), cone(6000)])
    shuffled = np.random.default_rng(3).permutation(len(vectors))
    gone = near_vectors(
        vector_rows(vectors[shuffled], shuffled, batch=5000),
        len(vectors),
        min_cosine=0.95,
        scratch=tmp_path,
    )
    assert gone.tolist() == list(range(1, 30_000))


@pytest.mark.parametrize("within", [0.97, 0.93])
def test_large_group_of_similar_clips_takes_linear_time(tmp_path, monkeypatch, within):
    """Clips of one camera, all near each other or all just too far apart."""
    verified = []
    pairwise = near._Cosines.near

    def counted(self, earlier, later):
        verified.append(len(later))
        return pairwise(self, earlier, later)

    monkeypatch.setattr(near._Cosines, "near", counted)
    costs = []
    for n in (5000, 10_000):
        verified.clear()
        crowd = cone(n, mean_cosine=within, seed=4)
        others = cone(n, seed=5)
        gone = near_vectors(
            vector_rows(np.concatenate([crowd, others])), 2 * n, min_cosine=0.95, scratch=tmp_path
        )
        costs.append(sum(verified))
        # All but the first, if they are near each other.
        assert within == 0.93 or len(gone) > 0.999 * n
    # Quadratic time would be 4 times as much, and 50 million pairs.
    assert costs[1] < 3 * costs[0] + 1000
    assert costs[1] < 3_000_000


def test_dataset_of_similar_clips_works(tmp_path):
    vectors = cone(10_000, mean_cosine=0.97)
    gone = near_vectors(vector_rows(vectors), 10_000, min_cosine=0.95, scratch=tmp_path)
    assert gone.tolist() == list(range(1, 10_000))


PROGRAM = """
import sys, tempfile, pathlib
from clipmill.pipeline.subsets.near import near_vectors
from tests.pipeline.subsets.near_rows import vector_rows
from tests.pipeline.subsets.test_near import with_pairs
import hashlib
vectors, _ = with_pairs(6000, 0.94, 0.96)
gone = near_vectors(vector_rows(vectors), 6000, min_cosine=0.95,
                    scratch=pathlib.Path(tempfile.gettempdir()))
print(hashlib.sha256(gone.tobytes()).hexdigest(), len(gone))
"""


def test_result_does_not_depend_on_threads_or_instructions():
    digests = {on_another_machine(PROGRAM, machine) for machine in MACHINES}
    assert len(digests) == 1
    assert int(digests.pop().split()[1]) > 100


def test_result_does_not_depend_on_row_order(tmp_path):
    vectors, _ = with_pairs(6000, 0.94, 0.96)
    frames = np.stack([vectors, np.roll(vectors, 1, axis=1), vectors], axis=1)
    whole = near_vectors(vector_rows(frames), 6000, min_cosine=0.95, scratch=tmp_path)
    order = np.random.default_rng(1).permutation(6000)
    other = near_vectors(
        vector_rows(frames[order], order, batch=77), 6000, min_cosine=0.95, scratch=tmp_path
    )
    assert len(whole) > 100
    assert whole.tolist() == other.tolist()


def test_embeddings_of_two_models_are_not_compared(tmp_path):
    clips = [[[1.0, 0.0]]] * 3 + [[[1.0, 0.0, 0.0]]]
    for batch in (2, 4):
        with pytest.raises(ClipmillError, match="embeddings of 2 and of 3 numbers"):
            near_vectors(
                reader("embeddings", EMBEDDINGS, clips, batch=batch),
                4,
                min_cosine=0.9,
                scratch=tmp_path,
            )


@pytest.mark.parametrize("min_cosine", [0, -0.5, 1.01, float("nan")])
def test_impossible_cosine_is_refused(tmp_path, min_cosine):
    with pytest.raises(UsageError, match="min_cosine"):
        near_vectors(vector_rows(cone(3)), 3, min_cosine=min_cosine, scratch=tmp_path)


def test_threshold_too_low_for_many_clips_is_refused(tmp_path):
    rows = vector_rows(cone(10_000, d=512, mean_cosine=0))
    with pytest.raises(UsageError, match=r"min_cosine: 0\.2 is too wide for 10,000 candidates"):
        near_vectors(rows, 10_000, min_cosine=0.2, recall=0.999, scratch=tmp_path)


# Hashes that differ in about half of their bits.
A, B, C, D, E, F, G = (
    int(value) for value in np.random.default_rng(8).integers(0, 2**63, 7, dtype=np.uint64)
)


def flipped(value: int, bits: int, seed: int = 0) -> int:
    for bit in np.random.default_rng(seed).choice(64, bits, replace=False).tolist():
        value ^= 1 << bit
    return value


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ([A, B, C, D], [A, B, C, D], True),
        ([A, B, C, D], [flipped(h, 6) for h in (A, B, C, D)], True),
        ([A, B, C, D], [flipped(h, 7) for h in (A, B, C, D)], False),
        ([A, B, C, D], [A, B, E, F], True),
        ([A, B, C, D], [A, E, E, F], False),
        ([A, B, C, D], [E, A, B, C], True),
        ([A, B, C, D], [E, F, A, B], True),
        ([A, B, C, D], [D, C, B, A], False),
        ([A, B], [A, B, C, D], True),
        ([A], [A, B, C, D], False),
        ([A], [flipped(A, 6)], True),
        ([A, B, C], [A, E, F], False),
        ([None, A, None, B], [A, B], True),
        ([A, None, None, None], [None, None, A], True),
        ([A, None, None, None], [A, B, C, None], False),
        ([A, A, A, A], [A, A, A, A], True),
        ([A, A, A, A], [A, B, C, D], False),
    ],
)
def test_clips_are_near_if_half_of_the_longer_ones_frames_match_in_order(one, other, is_near):
    for first, second in ((one, other), (other, one)):
        gone = near_hashes(hash_rows([first, [G, G, G], second], [0, 2, 1]), 3, max_distance=6)
        assert gone.tolist() == ([1] if is_near else [])


def test_clips_without_hashes_stay():
    rows = hash_rows([None, [], [None, None], [A], [A], None, [None]], [1, 2, 3, 4, 5, 6, 7])
    assert near_hashes(rows, 9, max_distance=6).tolist() == [5]
    assert near_hashes(hash_rows([]), 0, max_distance=6).tolist() == []


def many_hashes(n: int) -> tuple[list, np.ndarray]:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (n, 4), dtype=np.uint64)
    planted = np.arange(n - n // 10, n)
    for clip, source in zip(planted, range(len(planted)), strict=True):
        for frame in range(4):
            hashes[clip, frame] = flipped(int(hashes[source, frame]), 4 + frame % 3, int(clip))
    return hashes.tolist(), planted


def test_copies_are_found_among_many_hashes_in_any_order():
    lists, planted = many_hashes(6000)
    gone = near_hashes(hash_rows(lists), 6000, max_distance=6)
    assert set(gone.tolist()) <= set(planted.tolist())
    assert len(gone) >= 0.95 * len(planted)
    order = np.random.default_rng(1).permutation(6000)
    other = near_hashes(hash_rows([lists[i] for i in order], order), 6000, max_distance=6)
    assert other.tolist() == gone.tolist()


def test_many_equal_clips_and_a_shared_title_card():
    """Equal clips leave one; if they only share one frame, all stay."""
    equal = [[A, B, C, D]] * 4000
    card = [
        [E, *map(int, row)]
        for row in np.random.default_rng(2).integers(0, 2**63, (4000, 3), dtype=np.uint64)
    ]
    gone = near_hashes(hash_rows(equal + card), 8000, max_distance=6)
    assert gone.tolist() == list(range(1, 4000))


@pytest.mark.parametrize("max_distance", [-1, 32, 64])
def test_distance_too_large_to_mean_anything_is_refused(max_distance):
    with pytest.raises(UsageError, match="max_distance"):
        near_hashes(hash_rows([[A]]), 1, max_distance=max_distance)

"""Near-duplicates: removes clips if one with a better rank shows nearly the same.

A clip is removed if any clip before it is near, even if that one is removed too. So whether a clip
is removed depends only on pairs, not on the order of comparison; of a chain of clips, each near
only to the next, the first one stays.

Pairs come from the buckets of `pipeline/subsets/buckets.py`, whose formula gives the share of
pairs that is found, and each is verified. The result is the same on every machine: see
`stages/models/integer_vectors.py`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.subsets.buckets import Nearness, binomial, have_near_before
from clipmill.schemas.errors import UsageError
from clipmill.stages.models.integer_vectors import LENGTH, VectorStore, random_words

RECALL = 0.95
SKETCH_BITS = 256
HASH_BITS = 64
# Up to this many vectors are compared with all others by matrix products.
_ALL_PAIRS = 4096
# Every vector is first compared with this many of the best: if all clips of a dataset look alike,
# as from a fixed camera, few remain.
_LEADERS = 64
_PAIRS_AT_A_TIME = 8192
# By how many standard deviations the bits of a pair at the threshold may exceed the expected
# number of differences.
_LEEWAY = 3.5


def near_vectors(
    rows: pa.RecordBatchReader, n: int, *, min_cosine: float, scratch: Path, recall: float = RECALL
) -> np.ndarray:
    """Ranks to remove, ascending: the cosine with an earlier vector is at least `min_cosine`.

    `rows` has the columns `rank` (0 to n - 1, best first) and `embeddings` (frames of numbers), in
    any order; a clip's vector is the mean of its frames' directions. A rank that is missing or has
    no direction stays. Of equal vectors only the first is examined further. The result is exact up
    to 4096 distinct vectors, or that many that are not near to one of the 64 best; beyond that, it
    contains the share `recall` of the pairs whose cosine is just `min_cosine`. The vectors are
    stored in `scratch` meanwhile (2 bytes per number); memory holds about 110 bytes per clip.
    UsageError if `min_cosine` is too low for the number of clips.
    """
    if not 0 < min_cosine <= 1:
        raise UsageError(
            f"min_cosine: {min_cosine} is not a possible cosine of near-duplicates; "
            "give a value above 0 and up to 1, such as 0.95"
        )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = VectorStore(rows, Path(folder) / "vectors")
        _check_ranks(store.ranks, n)
        order = np.argsort(store.ranks)
        equal = _equals_one_before(store, order)
        gone = [store.ranks[order[equal]]]
        distinct = order[~equal]
        cosines = _Cosines(store, distinct, min_cosine)
        near = np.zeros(len(distinct), bool)
        if len(distinct) > _ALL_PAIRS:
            near = cosines.near_to_any(np.arange(_LEADERS))
        left = np.flatnonzero(~near)
        if len(left) <= _ALL_PAIRS:
            near[left] = cosines.have_near_before(left)
        else:
            sketches, nearness = _sketched(cosines, min_cosine)
            have_near_before(
                sketches, np.arange(len(distinct)), nearness, cosines.near, recall, near
            )
        gone.append(store.ranks[distinct[near]])
    return np.sort(np.concatenate(gone))


def _check_ranks(ranks: np.ndarray, n: int) -> None:
    if len(ranks) and not 0 <= ranks.min() <= ranks.max() < n:
        raise ValueError(f"ranks must lie from 0 to {n - 1}")


def _equals_one_before(store: VectorStore, order: np.ndarray) -> np.ndarray:
    """Which positions of `order` hold the same vector as an earlier one."""
    odd = random_words("marks", store.width) | np.uint64(1)
    marks = np.empty(len(store), np.uint64)
    for part, vectors in store.chunks():
        # Sums of products modulo 2**64: equal for equal vectors, and almost never otherwise.
        marks[part] = np.einsum("ij,j->i", vectors.astype(np.int64).view(np.uint64), odd)
    marks = marks[order]
    by_mark = np.argsort(marks, kind="stable")
    is_first = np.ones(len(marks), bool)
    is_first[1:] = marks[by_mark[1:]] != marks[by_mark[:-1]]
    group = np.cumsum(is_first) - 1
    first, later = by_mark[is_first][group[~is_first]], by_mark[~is_first]
    equal = np.zeros(len(order), bool)
    for start in range(0, len(later), _PAIRS_AT_A_TIME):
        part = slice(start, start + _PAIRS_AT_A_TIME)
        same = store.take(order[first[part]]) == store.take(order[later[part]])
        equal[later[part]] = same.all(axis=1)
    return equal


class _Cosines:
    """Whether distinct vectors, numbered from the best on, are near; computed exactly."""

    def __init__(self, store: VectorStore, places: np.ndarray, min_cosine: float) -> None:
        self._store, self._places, self._min_cosine = store, places, min_cosine
        self._number = np.full(len(store), -1, np.int64)
        self._number[places] = np.arange(len(places))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def width(self) -> int:
        return self._store.width

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All vectors with their numbers, in pieces, in their order on disk."""
        for part, vectors in self._store.chunks():
            numbers = self._number[part]
            yield numbers[numbers >= 0], vectors[numbers >= 0]

    def near(self, earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
        """Whether the vectors of each pair are near."""
        found = np.empty(len(later), bool)
        for start in range(0, len(later), _PAIRS_AT_A_TIME):
            part = slice(start, start + _PAIRS_AT_A_TIME)
            one = self._store.take(self._places[earlier[part]])
            other = self._store.take(self._places[later[part]])
            found[part] = self._enough(
                np.einsum("ij,ij->i", one, other), _squares(one), _squares(other)
            )
        return found

    def near_to_any(self, best: np.ndarray) -> np.ndarray:
        """Which vectors are near to any of some earlier ones."""
        found = np.zeros(len(self), bool)
        for numbers, enough in self._against(best):
            found[numbers] |= (enough & (best[None] < numbers[:, None])).any(axis=1)
        return found

    def have_near_before(self, some: np.ndarray) -> np.ndarray:
        """Which of some vectors have any near one before them."""
        found = np.zeros(len(some), bool)
        for numbers, enough in self._against(some):
            found |= (enough & (numbers[:, None] < some[None])).any(axis=0)
        return found

    def _against(self, some: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All vectors' numbers in pieces, and to which of some vectors each is near."""
        own = self._store.take(self._places[some])
        for numbers, vectors in self.chunks():
            for start in range(0, len(numbers), 1024):
                piece = vectors[start : start + 1024]
                yield (
                    numbers[start : start + 1024],
                    self._enough(piece @ own.T, _squares(piece)[:, None], _squares(own)[None]),
                )

    def _enough(self, products: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.asarray(products >= self._min_cosine * np.sqrt(ones * others))


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors), np.float64)


def _sketched(cosines: _Cosines, min_cosine: float) -> tuple[np.ndarray, Nearness]:
    """For each vector its side of random planes, and the nearness that this implies.

    The planes go through the mean of all vectors: embeddings lie in a narrow cone, which planes
    through the origin would hardly cut. Seen from the mean, a pair with the cosine c has about (c
    − m²) / (1 − m²), with m the length of the mean, and differs in one bit with the probability
    arccos of that / π.
    """
    total = np.zeros(cosines.width)
    for _, vectors in cosines.chunks():
        total += vectors.sum(axis=0, dtype=np.float64)
    mean = np.rint(total / len(cosines)).astype(np.float32)
    planes = _planes(cosines.width)
    sketches = np.empty((SKETCH_BITS // 64, len(cosines)), np.uint64)
    for numbers, vectors in cosines.chunks():
        sides = (vectors - mean) @ planes >= 0
        sketches[:, numbers] = np.packbits(sides, axis=1, bitorder="little").view("<u8").T
    squared = float(_squares(mean[None])[0]) / LENGTH**2
    centred = (min_cosine - squared) / (1 - squared) if squared < min_cosine else 0.0
    # Rounded up to thousandths, so that it doesn't depend on a C library's last digit.
    share = math.ceil(1000 * math.acos(centred) / math.pi - 1e-6) / 1000
    most = tuple(
        math.floor(bits * share + _LEEWAY * math.sqrt(bits * share * (1 - share)))
        for bits in range(64, SKETCH_BITS + 1, 64)
    )
    return sketches, Nearness(binomial(share, SKETCH_BITS), most, f"min_cosine: {min_cosine}")


def _planes(width: int) -> np.ndarray:
    """Normals of random planes, shape (width, SKETCH_BITS): integers from -8 to 8, bell-shaped.

    Products with the difference of two vectors stay below 2**24 up to 260,000 numbers.
    """
    coins = random_words(f"planes {width}", width * SKETCH_BITS // 4).view("<u2")
    return np.asarray(np.bitwise_count(coins), np.float32).reshape(width, SKETCH_BITS) - 8


def near_hashes(
    rows: pa.RecordBatchReader, n: int, *, max_distance: int, recall: float = RECALL
) -> np.ndarray:
    """Ranks to remove, ascending: their perceptual hashes are near to those of an earlier one.

    `rows` has the columns `rank` (0 to n - 1, best first) and `frame_hashes` (64-bit hashes in
    time order; null for a frame that shows nothing), in any order. Two hashes match if they differ
    in at most `max_distance` bits. Two clips are near if frames of both can be paired, in time
    order and not necessarily at the same positions, so that at least half of the hashes of the
    clip with more of them match: a copy may be trimmed or begin elsewhere, while one frame that
    two clips share, such as a title card, doesn't suffice. A clip without hashes stays. The result
    is exact up to 2048 hashes; beyond that, `recall` is the share of the pairs with one frame that
    differs in just `max_distance` bits that is found. Memory holds about 80 bytes per hash;
    nothing is stored on disk.
    """
    if not 0 <= max_distance < HASH_BITS // 2:
        raise UsageError(
            f"max_distance: {max_distance} is not from 0 to {HASH_BITS // 2 - 1}; "
            "hashes of unrelated frames differ in about 32 bits"
        )
    clips = _HashedClips(rows)
    _check_ranks(clips.ranks, n)
    hashes, owners = clips.items()
    nearness = Nearness({max_distance: 1.0}, (max_distance,), f"max_distance: {max_distance}")
    near = np.zeros(len(clips.ranks), bool)
    have_near_before(
        hashes[None],
        owners,
        nearness,
        lambda one, other: clips.near(one, other, max_distance),
        recall,
        near,
    )
    return clips.ranks[near]


class _HashedClips:
    """Hashes of clips by rank; those of clip i start at `starts[i]`."""

    def __init__(self, rows: pa.RecordBatchReader) -> None:
        ranks, counts, hashes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        for batch in rows:
            column = batch.column("frame_hashes")
            values = pc.list_flatten(column)
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            parents = pc.list_parent_indices(column).to_numpy()
            ranks.append(batch.column("rank").to_numpy().astype(np.int64))
            counts.append(np.bincount(parents[valid], minlength=batch.num_rows))
            hashes.append(values.drop_null().cast(pa.uint64()).to_numpy())
        came, n_came = np.concatenate(ranks), np.concatenate(counts)
        order = np.argsort(came)
        self.ranks, self.counts = came[order], n_came[order]
        if len(self.ranks) and (np.diff(self.ranks) == 0).any():
            raise ValueError("a rank stands on several rows")
        self.starts = np.cumsum(self.counts) - self.counts
        came_from = (np.cumsum(n_came) - n_came)[order]
        within = np.arange(self.counts.sum()) - np.repeat(self.starts, self.counts)
        flat = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        self.hashes = flat[np.repeat(came_from, self.counts) + within]

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes and their clips; equal hashes of a still picture occur only once."""
        owners = np.repeat(np.arange(len(self.ranks)), self.counts)
        differs = np.ones(len(owners), bool)
        differs[1:] = (owners[1:] != owners[:-1]) | (self.hashes[1:] != self.hashes[:-1])
        return self.hashes[differs], owners[differs]

    def near(self, earlier: np.ndarray, later: np.ndarray, max_distance: int) -> np.ndarray:
        found = np.empty(len(later), bool)
        for start in range(0, len(later), _PAIRS_AT_A_TIME):
            part = slice(start, start + _PAIRS_AT_A_TIME)
            ones, others = self.counts[earlier[part]], self.counts[later[part]]
            matched = self._matched(earlier[part], later[part], max_distance)
            found[part] = 2 * matched >= np.maximum(ones, others)
        return found

    def _matched(self, earlier: np.ndarray, later: np.ndarray, max_distance: int) -> np.ndarray:
        """The most frames that can be paired in order: the longest common subsequence."""
        n_ones, n_others = int(self.counts[earlier].max()), int(self.counts[later].max())
        best = np.zeros((n_others + 1, len(earlier)), np.int32)
        last = len(self.hashes) - 1
        for i in range(n_ones):
            has_one = i < self.counts[earlier]
            one = self.hashes[np.minimum(self.starts[earlier] + i, last)]
            before = best.copy()
            for j in range(n_others):
                other = self.hashes[np.minimum(self.starts[later] + j, last)]
                match = np.bitwise_count(one ^ other) <= max_distance
                match &= has_one & (j < self.counts[later])
                best[j + 1] = np.maximum(np.maximum(before[j + 1], best[j]), before[j] + match)
        return np.asarray(best[-1])

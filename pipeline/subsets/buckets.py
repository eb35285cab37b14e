"""Finds items with a near one before them, by locality-sensitive hashing: never all pairs.

An item is a sketch of some bits; near items differ in few of them. A table sorts all items by 32
of the bits, picked at random for each table; items that agree in the first `depth` of these share
a bucket, and only they are compared. `depth` grows with the logarithm of the number of items, so
the size of a bucket hardly depends on that number. If a bucket holds more than LARGEST_BUCKET
items, its members are compared with its best one and it is split by the table's next bit, and so
on; once the 32 bits are used up, each member is compared with LARGEST_BUCKET - 1 of those before
it. So a table costs at most a constant per item, apart from the sorting, and the number of tables
follows from the wanted recall; it depends on the number of items only through `depth`.

Recall, for a pair that is just near enough: it differs in h of B bits with probability w(h). A
table of depth b misses it with probability 1 − C(B − h, b) / C(B, b), and all T tables with that
to the power of T, so recall = Σ w(h) · (1 − (1 − C(B − h, b) / C(B, b))^T). T is the smallest
number that reaches the wanted recall, with b the depth of three quarters of the items in the first
table, not counting those that its bits could not tell apart: where items lie closer together,
buckets are split further and more tables are needed. Pairs that are nearer than the threshold, and
items with several near ones, are found more often. Items with equal sketches meet in every table
and are compared only in the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipmill.schemas.errors import UsageError
from clipmill.stages.models.integer_vectors import random_words

LARGEST_BUCKET = 64
# Up to this many items share one bucket, and every pair of them is compared.
ALL_PAIRS = 2048
MOST_TABLES = 1024
_KEY_BITS = 32
_WORD_BITS = 64
# Items processed at a time: their sketches and positions fit in the CPU's cache.
_CHUNK = 1 << 17
# Crowded items may need this many times as many tables as evenly spread ones.
_MOST_FOR_CROWDS = 4

Verify = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Says for pairs of an earlier and a later owner whether they are near."""


@dataclass(frozen=True)
class Nearness:
    """Defines nearness: a pair that is just near enough differs in h bits with probability
    `chances[h]`.

    Pairs that differ in more than `most[i]` bits of the first i + 1 words are not verified.
    """

    chances: dict[int, float]
    most: tuple[int, ...]
    threshold: str
    """As the user wrote it, for messages."""


def binomial(share: float, bits: int) -> dict[int, float]:
    """The probability of each number of differing bits if each differs with probability `share`."""
    # Products only, in a fixed order: the last digit of powers differs between C libraries.
    chances = [1.0]
    for _ in range(bits):
        padded = [0.0, *chances, 0.0]
        chances = [padded[i + 1] * (1 - share) + padded[i] * share for i in range(len(chances) + 1)]
    return dict(enumerate(chances))


def tables_needed(near: Nearness, bits: int, depth: int, recall: float) -> int | None:
    """The fewest tables that find a pair at the threshold with the wanted probability."""
    missed = []
    for differing, chance in near.chances.items():
        found = math.comb(bits - differing, depth) / math.comb(bits, depth)
        if differing <= near.most[-1]:
            missed.append([chance, 1 - found])
    most = sum(chance for chance, _ in missed)
    for tables in range(1, MOST_TABLES + 1):
        for entry in missed:
            entry[0] *= entry[1]
        if most - sum(chance for chance, _ in missed) >= recall:
            return tables
    return None


def have_near_before(
    sketches: np.ndarray,
    owners: np.ndarray,
    near: Nearness,
    verify: Verify,
    recall: float,
    gone: np.ndarray,
) -> None:
    """Marks in `gone` which owners have a near one before them; marked ones are skipped.

    `sketches` has shape (words, items), uint64; `owners` is ascending and gives each item's owner.
    UsageError if the threshold is too wide for the number of items.
    """
    if len(owners) > 1:
        _Search(sketches, owners, near, verify, gone).run(recall)


class _Search:
    def __init__(
        self,
        sketches: np.ndarray,
        owners: np.ndarray,
        near: Nearness,
        verify: Verify,
        gone: np.ndarray,
    ) -> None:
        self.sketches, self.owners, self.near, self.verify = sketches, owners, near, verify
        self.gone, self.n_items, self.least_differing = gone, len(owners), 0
        self.bits = _WORD_BITS * len(sketches)
        few = self.n_items <= ALL_PAIRS
        self.largest = ALL_PAIRS if few else LARGEST_BUCKET
        # Half of the largest bucket on average, or less.
        self.depth = 0 if few else ((self.n_items - 1) // (LARGEST_BUCKET // 2)).bit_length()

    def run(self, recall: float) -> None:
        evenly = tables_needed(self.near, self.bits, self.depth, recall)
        if evenly is None:
            raise UsageError(
                f"{self.near.threshold} is too wide for {self.n_items:,} candidates: "
                f"{MOST_TABLES} passes would find less than {recall:.0%} of such pairs; use a "
                "narrower one, or add rules before it that leave fewer clips"
            )
        crowded = tables_needed(self.near, self.bits, self._table(0), recall) or MOST_TABLES
        for number in range(1, min(crowded, _MOST_FOR_CROWDS * evenly)):
            self._table(number)

    def _table(self, number: int) -> int:
        """Marks the finds of one table, and returns the depth of three quarters of the items."""
        self.least_differing = 0 if number == 0 else 1
        packed = self._keys(number)
        packed.sort()
        items = packed.astype(np.uint32)
        keys = (packed >> np.uint64(32)).astype(np.uint32)
        del packed
        first = self.sketches[0][items]
        ends, depth = self._buckets(keys, items, first)
        del keys
        for start in range(0, self.n_items, _CHUNK):
            at = np.arange(start, min(start + _CHUNK, self.n_items))
            for offset in range(1, self.largest):
                at = at[at + offset < ends[at]]
                if not len(at):
                    break
                close = self._may_be_near(first[at], first[at + offset])
                self._compare(items[at[close]], items[at[close] + offset])
        return depth

    def _keys(self, number: int) -> np.ndarray:
        """For each item, its bits in the table, above its number."""
        order = np.argsort(random_words(f"table {number}", self.bits), kind="stable")
        packed = np.empty(self.n_items, np.uint64)
        one = np.uint64(1)
        for start in range(0, self.n_items, _CHUNK):
            part = slice(start, min(start + _CHUNK, self.n_items))
            key = np.zeros(part.stop - start, np.uint64)
            for bit in order[:_KEY_BITS].tolist():
                word = self.sketches[bit // _WORD_BITS, part]
                key = (key << one) | ((word >> np.uint64(bit % _WORD_BITS)) & one)
            packed[part] = (key << np.uint64(32)) | np.arange(start, part.stop, dtype=np.uint64)
        return packed

    def _buckets(
        self, keys: np.ndarray, items: np.ndarray, first: np.ndarray
    ) -> tuple[np.ndarray, int]:
        """By sorted position the end of its bucket, and the depth of three quarters of them."""
        shared = self._shared_with_next(keys)
        ends = np.empty(self.n_items, np.uint32)
        at, settled = np.arange(self.n_items), np.zeros(_KEY_BITS + 1, np.int64)
        for depth in range(self.depth, _KEY_BITS + 1):
            stops = np.flatnonzero(shared[at] < depth) + 1
            sizes = np.diff(stops, prepend=0)
            ends[at] = np.repeat(at[stops - 1] + 1, sizes)
            large = sizes > self.largest
            settled[depth] = sizes[~large].sum()
            if not large.any():
                break
            at = at[np.repeat(large, sizes)]
            self._compare_with_best(first, items, at, sizes[large])
        enough = np.cumsum(settled) * 4 >= settled.sum() * 3
        return ends, max(self.depth, int(enough.argmax()))

    def _shared_with_next(self, keys: np.ndarray) -> np.ndarray:
        """How many leading bits each key shares with the next; -1 for the last one."""
        shared = np.full(self.n_items, -1, np.int8)
        for start in range(0, self.n_items - 1, _CHUNK):
            stop = min(start + _CHUNK, self.n_items - 1)
            differing = keys[start:stop] ^ keys[start + 1 : stop + 1]
            shared[start:stop] = _KEY_BITS - np.frexp(differing.astype(np.float64))[1]
        return shared

    def _compare_with_best(
        self, first: np.ndarray, items: np.ndarray, at: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Compares the members of buckets, at the positions `at`, with the best of each."""
        best = np.minimum.reduceat(items[at], np.cumsum(sizes) - sizes)
        bucket = np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)
        for start in range(0, len(at), _CHUNK):
            members, own_best = at[start : start + _CHUNK], best[bucket[start : start + _CHUNK]]
            close = self._may_be_near(first[members], self.sketches[0][own_best])
            self._compare(items[members[close]], own_best[close])

    def _may_be_near(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(np.bitwise_count(one ^ other) <= self.near.most[0])

    def _compare(self, one: np.ndarray, other: np.ndarray) -> None:
        """Marks the later owner of each pair of items that are near."""
        owners = self.owners[one], self.owners[other]
        earlier, later = np.minimum(*owners), np.maximum(*owners)
        close = (earlier != later) & ~self.gone[later]
        differing = np.zeros(len(one), np.int32)
        for word, most in zip(self.sketches, self.near.most, strict=True):
            one, other, differing = one[close], other[close], differing[close]
            earlier, later = earlier[close], later[close]
            differing += np.bitwise_count(word[one] ^ word[other])
            close = differing <= most
        close &= differing >= self.least_differing
        earlier, later = earlier[close], later[close]
        if len(later):
            self.gone[later[self.verify(earlier, later)]] = True

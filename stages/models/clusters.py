"""Centres of clusters over any number of clips: found on a sample of bounded size, which depends
only on the clips' ids, and the distances of clips from them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.integer_vectors import clip_vectors
from clipmill.stages.models.k_means import SAMPLE_PER_CLUSTER, find_centres, nearest

# `clips` is how many clips of the sample had each.
CENTRES = pa.schema(
    [("cluster", pa.int32()), ("centre", pa.list_(pa.int16())), ("clips", pa.int64())]
)


def fit_centres(
    tables: Iterable[pa.Table], *, clusters: int | None, sample: int, seed: int
) -> pa.Table | None:
    """The centres of clips with `clip_id` and `embeddings`, the most frequent one first.

    None if no clip has a vector. Without a number of `clusters`, the square root of the clips'.
    """
    found = _Sample(sample)
    for table in tables:
        found.add(table)
    vectors = found.vectors()
    if not len(vectors):
        return None
    if clusters is None:
        clusters = max(1, min(round(math.sqrt(found.seen)), sample // SAMPLE_PER_CLUSTER))
    centres = find_centres(vectors, clusters, seed)
    sizes = np.bincount(nearest(vectors, centres)[0], minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    return pa.table(
        [
            pa.array(np.arange(len(order), dtype=np.int32)),
            pa.array(list(centres[order].astype(np.int16)), CENTRES.field("centre").type),
            pa.array(sizes[order]),
        ],
        schema=CENTRES,
    )


class _Sample:
    """The clips whose ids have the smallest hashes, in the order of the hashes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._hashes: list[np.ndarray] = []
        self._vectors: list[np.ndarray] = []
        self._held = 0
        self._limit = np.uint64(2**64 - 1)
        self.seen = 0
        """Clips with embeddings so far."""

    def add(self, table: pa.Table) -> None:
        self.seen += table.num_rows - table["embeddings"].null_count
        hashes = _hashes(table["clip_id"].to_pylist())
        for ranks, vectors in clip_vectors(_ranked(table), hashes <= self._limit):
            self._hashes.append(hashes[ranks])
            self._vectors.append(vectors)
            self._held += len(ranks)
            if self._held > 2 * self._size:
                self._shrink()

    def vectors(self) -> np.ndarray:
        """The sample's vectors, as integers in float32."""
        if not self._held:
            return np.empty((0, 0), np.float32)
        self._shrink()
        return self._vectors[0].astype(np.float32)

    def _shrink(self) -> None:
        widths = {vectors.shape[1] for vectors in self._vectors}
        if len(widths) > 1:
            raise ClipmillError(
                "embeddings of different lengths can't be clustered together: "
                f"{' and '.join(map(str, sorted(widths)))} numbers"
            )
        # A clip that two sources led to is there twice.
        hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
        places = first[: self._size]
        self._vectors = [np.concatenate(self._vectors)[places]]
        self._hashes = [hashes[: self._size]]
        self._held = len(places)
        if self._held == self._size:
            self._limit = self._hashes[0][-1]


def _hashes(ids: list[str]) -> np.ndarray:
    digests = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids]
    return np.frombuffer(b"".join(digests), "<u8")


def _ranked(table: pa.Table) -> list[pa.RecordBatch]:
    """The embeddings of a table with the numbers of their rows."""
    ranks = pa.array(np.arange(table.num_rows))
    column = lists_of_frames(table["embeddings"])
    batches: list[pa.RecordBatch] = pa.table({"rank": ranks, "embeddings": column}).to_batches()
    return batches


def lists_of_frames(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Embeddings as lists of frames; a column with one vector per clip has one frame each."""
    if _is_list(column.type.value_type):
        return column
    chunks = []
    for chunk in column.chunks:
        counts = np.concatenate([[0], np.cumsum(chunk.is_valid().to_numpy(zero_copy_only=False))])
        frames = chunk.drop_null()
        chunks.append(pa.ListArray.from_arrays(pa.array(counts, pa.int32()), frames))
    return pa.chunked_array(chunks, pa.list_(column.type))


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def holds_vectors(kind: pa.DataType) -> bool:
    """Whether a column has vectors, or lists of them."""
    if not _is_list(kind):
        return False
    inner = kind.value_type.value_type if _is_list(kind.value_type) else kind.value_type
    return bool(pa.types.is_floating(inner))


class Centres:
    """The centres of a fit that are not empty."""

    def __init__(self, fitted: pa.Table) -> None:
        there = fitted.filter(fitted["centre"].is_valid())
        self._numbers = there["cluster"].to_numpy()
        flat = pc.list_flatten(there["centre"]).to_numpy()
        self._centres = flat.reshape(len(there), -1).astype(np.float32)
        self._squares = _squares(self._centres)

    def of(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """For each row the number of the nearest centre, -1 without a vector, and 1 − cosine."""
        numbers = np.full(table.num_rows, -1, np.int32)
        away = np.full(table.num_rows, np.nan, np.float32)
        for ranks, vectors in clip_vectors(_ranked(table)):
            if vectors.shape[1] != self._centres.shape[1]:
                raise ClipmillError(
                    f"the centres have {self._centres.shape[1]} numbers, the embeddings "
                    f"{vectors.shape[1]}"
                )
            some = vectors.astype(np.float32)
            labels, products = nearest(some, self._centres)
            numbers[ranks] = self._numbers[labels]
            cosines = products.astype(np.float64) / np.sqrt(_squares(some) * self._squares[labels])
            away[ranks] = np.maximum(0, 1 - cosines)
        return numbers, away


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors), np.float64)

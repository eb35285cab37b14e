"""Clips' embeddings as integer vectors: arithmetic on them is exact, so results never depend on
the machine, on threads, on batches or on the order of rows.

A clip's vector is the mean of its frames' embeddings, each normalised to length 1; the mean is
scaled to length LENGTH and rounded to integers. Products of two such vectors stay below 2**24, and
by Cauchy and Schwarz so does every partial sum, in whatever order a BLAS adds: (2047 + √d / 2)² <
2**24 for any d below 16 million. float32, in which BLAS is fast, holds such integers exactly. The
rounding changes the cosine of two vectors by about 0.0002.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.schemas.errors import ClipmillError

LENGTH = 2047
# Largest absolute number of a frame before and after it is normalised: sums of squares and of
# frames stay below 2**53, up to which float64 is exact.
_FRAME_PEAK = 2.0**15
_FRAME_LENGTH = 2.0**20
# Numbers processed at a time, so that a batch of any size needs little memory.
_CHUNK_NUMBERS = 2_000_000


def directions(rows: np.ndarray, length: float = LENGTH) -> np.ndarray:
    """Rows of numbers as integers in float64, of about the given length; a zero row stays zero.

    Uses only operations that IEEE 754 defines exactly: products, quotients, square roots and
    roundings of single numbers, and sums of integers below 2**53.
    """
    rows = np.asarray(rows, np.float64)
    peaks = np.abs(rows).max(axis=1, initial=0, keepdims=True)
    whole = np.rint(rows * np.divide(_FRAME_PEAK, peaks, out=np.zeros_like(peaks), where=peaks > 0))
    lengths = np.sqrt(np.einsum("ij,ij->i", whole, whole))[:, None]
    factors = np.divide(length, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return np.asarray(np.rint(whole * factors))


def clip_vectors(
    rows: Iterable[pa.RecordBatch], wanted: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ranks and int16 vectors of the clips that have a direction, in pieces of bounded size.

    A clip without embeddings, with numbers that are not finite, or whose frames cancel out has
    none. `wanted`, a bool for each rank, selects the vectors to read. ClipmillError if embeddings
    differ in their number of dimensions.
    """
    width: int | None = None
    for batch in rows:
        start, step = 0, 256
        while start < batch.num_rows:
            part = batch.slice(start, step)
            start += part.num_rows
            ranks = part.column("rank").to_numpy().astype(np.int64)
            if wanted is not None:
                part = part.filter(pa.array(wanted[ranks]))
                ranks = ranks[wanted[ranks]]
            frames, parents = _frames(part.column("embeddings"))
            if not len(frames):
                continue
            width = width or frames.shape[1]
            if frames.shape[1] != width:
                raise _mixed(width, frames.shape[1])
            step = int(np.clip(_CHUNK_NUMBERS * len(ranks) // frames.size, 1, 65_536))
            vectors, with_frames = _means(frames, parents)
            found = vectors.any(axis=1)
            yield ranks[with_frames[found]], vectors[found]


def _frames(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Every frame's numbers, and the index of its clip in the column."""
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    frames = pc.list_flatten(column)
    widths = pc.fill_null(pc.list_value_length(frames), 0).to_numpy(zero_copy_only=False)
    parents = np.repeat(np.arange(len(counts)), counts)[widths > 0]
    widths = widths[widths > 0]
    if not len(widths):
        return np.empty((0, 0)), parents
    if widths.min() != widths.max():
        raise _mixed(widths.min(), widths.max())
    numbers = pc.list_flatten(frames).to_numpy(zero_copy_only=False)
    return numbers.reshape(-1, widths[0]), parents


def _mixed(one: int, other: int) -> ClipmillError:
    return ClipmillError(
        f"embeddings of {one} and of {other} numbers are mixed and cannot be compared; name "
        "the step to use with `embeddings:`; `SELECT stage, "
        "len(embeddings[1]) AS numbers, count(*) FROM embeddings GROUP BY ALL` shows which steps "
        "differ"
    )


def _means(frames: np.ndarray, parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector of each clip that has frames, and the indexes of these clips."""
    finite = np.isfinite(frames).all(axis=1)
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    units = directions(np.where(finite[:, None], frames, 0), _FRAME_LENGTH)
    sums = _sums(units, starts)
    sums[~np.logical_and.reduceat(finite, starts)] = 0
    return directions(sums).astype(np.int16), parents[starts]


def _sums(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sums of runs of rows that begin at these indexes."""
    each = len(rows) // max(1, len(starts))
    if each == 1 and len(starts) == len(rows):
        return rows
    if np.array_equal(starts, np.arange(0, len(rows), each)):
        return np.asarray(rows.reshape(-1, each, rows.shape[1]).sum(axis=1))
    return np.asarray(np.add.reduceat(rows, starts, axis=0))


class VectorStore:
    """Vectors on disk in their original order, with their `ranks` in memory."""

    def __init__(
        self, rows: pa.RecordBatchReader, path: Path, wanted: np.ndarray | None = None
    ) -> None:
        ranks, self.width = [], 0
        with path.open("wb") as file:
            for some, vectors in clip_vectors(rows, wanted):
                self.width = vectors.shape[1]
                ranks.append(some)
                file.write(np.ascontiguousarray(vectors).data)
        self.ranks = np.concatenate(ranks) if ranks else np.empty(0, np.int64)
        if len(np.unique(self.ranks)) != len(self.ranks):
            raise ValueError("a rank stands on several rows")
        self._numbers = (
            np.memmap(path, np.int16, "r", shape=(len(self.ranks), self.width))
            if len(self.ranks)
            else np.empty((0, 0), np.int16)
        )

    def __len__(self) -> int:
        return len(self.ranks)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The vectors at some positions, as integers in float32."""
        return np.asarray(self._numbers[places], np.float32)

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All vectors in pieces, as integers in float32."""
        step = max(1, _CHUNK_NUMBERS // max(1, self.width))
        for start in range(0, len(self), step):
            part = slice(start, min(start + step, len(self)))
            yield part, self._numbers[part].astype(np.float32)


def random_words(name: str, count: int) -> np.ndarray:
    """`count` 64-bit numbers that depend only on `name`, the same with any version of NumPy."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(8 * count), "<u8")

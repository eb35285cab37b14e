"""Reads stored embeddings as arrays, and computes with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

STORED = pa.list_(pa.list_(pa.float16()))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1 along the last axis, as float64; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths != 0)
    return scaled


def stored(column: pa.ChunkedArray | pa.Array) -> list[np.ndarray]:
    """The arrays in an `embeddings` column: one of shape (frames, d) per clip, rescaled to length
    1.

    Half floats keep lengths to about 1 in 2000; a clip without embeddings has shape (0, 0).
    """
    found = []
    for clip in column:
        frames = [] if clip.values is None else [frame.values.to_numpy() for frame in clip.values]
        found.append(unit(np.stack(frames)) if frames else np.empty((0, 0)))
    return found


def frame_mean(frames: np.ndarray) -> np.ndarray:
    """A clip's direction: the mean of its frames' unit vectors, rescaled to length 1."""
    return unit(frames.mean(axis=0))


def as_column(clips: Sequence[np.ndarray], lacking: pa.Array | None = None) -> pa.Array:
    """An `embeddings` column of half floats, from one array of shape (frames, d) per clip.

    `lacking` says which of them are null.
    """
    counts = np.array([len(clip) for clip in clips], np.int64)
    widths = (
        np.concatenate([np.full(len(clip), clip.shape[1], np.int64) for clip in clips])
        if clips
        else np.empty(0, np.int64)
    )
    flat = [np.asarray(clip, np.float16).reshape(-1) for clip in clips]
    values = pa.array(np.concatenate(flat) if flat else np.empty(0, np.float16))
    frames = pa.ListArray.from_arrays(_offsets(widths), values, type=STORED.value_type)
    return pa.ListArray.from_arrays(_offsets(counts), frames, type=STORED, mask=lacking)


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())

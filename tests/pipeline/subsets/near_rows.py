"""Input rows of `near_vectors`, `near_hashes` and `assign_clusters`, and vectors to plant."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[3]
# Two machines that sum in other orders: different threads, kernels, instructions.
MACHINES = (
    {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"},
    {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "AVX512_SKX AVX512_ICL AVX512_SPR X86_V4",
    },
)


def reader(
    column: str,
    kind: pa.DataType,
    values: Sequence,
    ranks: Sequence[int] | None = None,
    batch: int = 1000,
) -> pa.RecordBatchReader:
    ranks = np.arange(len(values)) if ranks is None else np.asarray(ranks, np.int64)
    schema = pa.schema([("rank", pa.int64()), (column, kind)])

    def batches():
        for start in range(0, len(values), batch):
            part = slice(start, start + batch)
            yield pa.record_batch(
                [pa.array(ranks[part]), pa.array(values[part], kind)], schema=schema
            )

    return pa.RecordBatchReader.from_batches(schema, batches())


EMBEDDINGS = pa.list_(pa.list_(pa.float32()))


def vector_rows(
    vectors: np.ndarray, ranks: Sequence[int] | None = None, batch: int = 1000
) -> pa.RecordBatchReader:
    """One frame per clip, or several for a three-dimensional array."""
    frames = vectors[:, None] if vectors.ndim == 2 else vectors
    n, k, d = frames.shape
    ranks = np.arange(n) if ranks is None else np.asarray(ranks, np.int64)
    schema = pa.schema([("rank", pa.int64()), ("embeddings", EMBEDDINGS)])

    def batches():
        for start in range(0, n, batch):
            part = np.ascontiguousarray(frames[start : start + batch], np.float32)
            m = len(part)
            inner = pa.ListArray.from_arrays(
                np.arange(0, m * k * d + 1, d, dtype=np.int32), pa.array(part.reshape(-1))
            )
            outer = pa.ListArray.from_arrays(np.arange(0, m * k + 1, k, dtype=np.int32), inner)
            yield pa.record_batch([pa.array(ranks[start : start + batch]), outer], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def hash_rows(lists: Sequence, ranks: Sequence[int] | None = None) -> pa.RecordBatchReader:
    return reader("frame_hashes", pa.list_(pa.uint64()), lists, ranks)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def cone(n: int, d: int = 64, seed: int = 0, mean_cosine: float = 0.4) -> np.ndarray:
    """Directions around a common one, like embeddings of pictures."""
    rng = np.random.default_rng(seed)
    middle = unit(rng.normal(size=d))
    return unit(
        np.sqrt(mean_cosine) * middle + np.sqrt(1 - mean_cosine) * unit(rng.normal(size=(n, d)))
    )


def beside(vectors: np.ndarray, cosines: np.ndarray, seed: int = 1) -> np.ndarray:
    """Random directions with these cosines to the given ones."""
    noise = np.random.default_rng(seed).normal(size=vectors.shape)
    noise = unit(noise - (noise * vectors).sum(axis=1, keepdims=True) * vectors)
    return cosines[:, None] * vectors + np.sqrt(1 - cosines[:, None] ** 2) * noise


def on_another_machine(program: str, machine: dict[str, str]) -> str:
    """The output of a Python program under these settings."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **machine},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

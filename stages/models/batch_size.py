"""Detects when memory runs out, and halves batches until they fit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmill.schemas.errors import RowFailed

if TYPE_CHECKING:
    Compute = Callable[[Sequence[Any], int], Iterable[np.ndarray]]

# Messages of CUDA, its libraries, PyTorch's allocators and Apple, in lower case.
_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "insufficient memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the GPU's or the machine's memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def out_of_memory(error: BaseException) -> RowFailed:
    """The failure of a row that does not fit into memory even alone."""
    return RowFailed("model", f"out of memory: {type(error).__name__}: {error}")


def free_memory() -> None:
    """Frees what a failed batch held; call it outside the handler of its exception."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSize:
    """How many items go through a model at a time: halved permanently if memory runs out.

    For models whose results are rows of an array, in the order of the items.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def rows(self, items: Sequence[Any], compute: Compute) -> list[np.ndarray]:
        """The arrays that `compute(items, size)` yields, one per batch, over all the items.

        RowFailed if a single item doesn't fit into memory.
        """
        done: list[np.ndarray] = []
        at = 0
        while at < len(items):
            failure = None
            try:
                for part in compute(items[at:], self.size):
                    done.append(part)
                    at += len(part)
                if at != len(items):
                    # All later results would be assigned to the wrong items.
                    raise RuntimeError(f"{len(items)} inputs gave {at} outputs")
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = out_of_memory(error)
            if failure is not None:
                # Outside the handler, whose traceback references the batch's tensors.
                free_memory()
                tried = min(self.size, len(items) - at)
                if tried == 1:
                    raise failure
                self.size = tried // 2
        return done

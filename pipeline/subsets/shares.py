"""Divides a number of clips among groups."""

from __future__ import annotations

import numpy as np


def proportional(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Shares in proportion to the groups, by largest remainders; the first group wins a tie."""
    total = int(sizes.sum())
    if wanted >= total:
        return sizes.copy()
    exact = [int(size) * wanted for size in sizes]
    shares = np.array([value // total for value in exact], dtype=np.int64)
    remainders = np.array([value % total for value in exact])
    more = wanted - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:more]] += 1
    return shares


def equal(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Shares as equal as the groups allow; a remainder goes to the first groups."""
    total = int(sizes.sum())
    if wanted >= total:
        return sizes.copy()
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # find the highest level that the wanted number fills
        middle = (low + high + 1) // 2
        if int(np.minimum(sizes, middle).sum()) <= wanted:
            low = middle
        else:
            high = middle - 1
    shares: np.ndarray = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)
    shares[larger[: wanted - int(shares.sum())]] += 1
    return shares

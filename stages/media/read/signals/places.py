"""Puts what was measured on the frames of a whole video: also those that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def bytes_of_pictures(
    packets: Sequence[tuple[float, int]], seconds: Sequence[float]
) -> list[int] | None:
    """For each picture, the bytes of the packets that are shown from it until the next.

    `packets` are pairs of a time and a size, in any order; None without any. What is shown before
    the first picture is counted with it.
    """
    if not packets or not seconds:
        return None
    times, sizes = np.array(packets).T
    # A packet and its picture have the same time, up to rounding.
    places = np.searchsorted(np.asarray(seconds) - 1e-6, times, side="right") - 1
    counts = np.bincount(np.maximum(places, 0), weights=sizes, minlength=len(seconds))
    found: list[int] = counts.astype(np.int64).tolist()
    return found


def fill_signals(columns: dict[str, Any], numbers: Sequence[int]) -> None:
    """Gives the frames that were left out a place in what was kept for signals, with nulls.

    `columns` are those of SCANS, filled but for these; `numbers` are the decoded pictures'.
    """
    if len(numbers) == len(columns["frame_numbers"]):
        return
    places = np.searchsorted(columns["frame_numbers"], numbers).tolist()
    columns["signals"] = [
        (name, _spread(values, places, len(columns["seconds"])))
        for name, values in columns["signals"]
    ]
    columns["overlays"] = [
        {**pair, "first": places[pair["first"]], "last": places[pair["last"]]}
        for pair in columns["overlays"]
    ]


def _spread(
    values: Sequence[float | None], places: Sequence[int], count: int
) -> list[float | None]:
    spread: list[float | None] = [None] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread

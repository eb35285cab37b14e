"""Fills in the measures of frames that a scan left out from those of their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def fill(columns: dict[str, Any], left_out: Sequence[tuple[int, float]]) -> None:
    """Adds frames, as numbers and seconds, to the columns of SCANS that have one entry a frame.

    A frame that was left out has the motion of the next one, which is the mean over the time in
    between, and sharpness and brightness between those of the frames before and after.
    """
    if not left_out:
        return
    numbers, seconds = columns["frame_numbers"], columns["seconds"]
    known = np.array(numbers)
    every = sorted([*zip(numbers, seconds, strict=True), *left_out])
    columns["frame_numbers"] = [number for number, _ in every]
    columns["seconds"] = [at for _, at in every]
    following = np.searchsorted(known, columns["frame_numbers"])
    columns["motion"] = [columns["motion"][at] for at in following]
    for name in ("sharpness", "brightness"):
        columns[name] = np.interp(columns["seconds"], seconds, columns[name]).tolist()

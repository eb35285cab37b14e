"""Reads the safe rectangles that an export crops to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import RowFailed, UsageError
from clipmill.schemas.safe_rectangles import ROUNDING, SAFE
from clipmill.schemas.sql_text import quoted
from clipmill.stages.media.cutting.requests import Rectangle

PINNED = tuple(f"_{name}" for name in SAFE)
"""The columns of the rectangle in an export's pinned rows, whatever the format."""
_NUMBERS = ("FLOAT", "DOUBLE", "DECIMAL", "INTEGER", "BIGINT", "TINYINT", "SMALLINT")


def safe_columns(there: Mapping[str, str], dataset: Any) -> dict[str, str]:
    """The pinned columns as SQL over `clips`; UsageError if a column is missing.

    `there` has the columns' types by name.
    """
    lacking = [name for name in SAFE if name not in there]
    if lacking:
        raise UsageError(
            f"--crop safe reads the columns {', '.join(SAFE)} of clips, but {dataset} has no "
            f"{' and no '.join(lacking)}: measure black bars with `clipmill run --dataset "
            f"{shell_word(dataset)} --set split_clips.signals=true`, or add a stage that makes "
            "them (docs/export.md#cropping has one)"
        )
    for name in SAFE:
        if not there[name].startswith(_NUMBERS):
            raise UsageError(
                f"--crop safe: the column {name} of clips is {there[name]}, not a number from 0 to "
                "1"
            )
    return {
        pinned: f"CAST({quoted(name)} AS DOUBLE)" for name, pinned in zip(SAFE, PINNED, strict=True)
    }


def rectangle_of(row: Mapping[str, Any]) -> Rectangle | None:
    """What to crop a clip to; None if it has no rectangle or is safe as a whole.

    RowFailed if the rectangle makes no sense.
    """
    values = [row[name] for name in PINNED]
    if all(value is None for value in values):
        return None
    for name, value in zip(SAFE, values, strict=True):
        if value is None or not math.isfinite(value):
            said = "has no value" if value is None else f"is {value}"
            raise _senseless(f"{name} {said}")
        if not -ROUNDING <= value <= 1 + ROUNDING:
            raise _senseless(f"{name} is {value:g}, which is not a share from 0 to 1")
    left, top, right, bottom = (min(1.0, max(0.0, value)) for value in values)
    for low, high, names in ((left, right, SAFE[::2]), (top, bottom, SAFE[1::2])):
        if low >= high:
            raise _senseless(f"{names[0]} is {low:g} and {names[1]} {high:g}")
    if max(left, top, 1 - right, 1 - bottom) <= ROUNDING:
        return None
    return Rectangle(left, top, right, bottom)


def _senseless(what: str) -> RowFailed:
    return RowFailed("permanent", f"its safe rectangle makes no sense: {what}")

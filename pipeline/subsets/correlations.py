"""Rank correlations between the scores of a catalog: which of them say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.subsets.expressions import is_numeric
from clipmill.schemas.sql_text import quoted

MOST_CLIPS = 250_000
"""Of larger catalogs, this many clips are drawn: a correlation then varies by about 0.002."""
_ALWAYS = ("duration_seconds", "motion", "sharpness", "brightness")
_LEAST_PAIRS = 3


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two columns, over the clips that have both."""

    columns: tuple[str, str]
    spearman: float | None
    """None if there are too few pairs, or one of the columns has a single value."""
    clips: int
    """How many clips have both."""
    nulls: int
    """How many clips lack one of them."""


@dataclass(frozen=True)
class Correlations:
    """All pairs, the strongest first."""

    columns: tuple[str, ...]
    clips: int
    """How many clips were looked at."""
    of_clips: int
    """How many the catalog has."""
    pairs: tuple[Correlation, ...]

    def plain(self) -> dict[str, Any]:
        return {
            "columns": list(self.columns),
            "clips": self.clips,
            "of_clips": self.of_clips,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


def score_columns(catalog: Catalog) -> list[str]:
    """The numeric columns of `clips` that describe what is in a clip."""
    described = catalog.execute("SELECT * FROM clips LIMIT 0").description
    made = catalog.layout.clip_columns
    return [
        name for name, kind, *_ in described if name in {*made, *_ALWAYS} and is_numeric(str(kind))
    ]


def score_correlations(catalog: Catalog, *, most_clips: int = MOST_CLIPS) -> Correlations:
    """Spearman's correlation of every two scores of `clips` that have values.

    Nulls are left out pairwise. Larger catalogs are sampled by a hash of the clip's id, so the
    result doesn't vary.
    """
    names = score_columns(catalog)
    (whole,) = catalog.execute("SELECT count(*) FROM clips").fetchall()[0]
    if len(names) < 2 or not whole:
        return Correlations(tuple(names), 0, whole, ())
    picked = ", ".join(f"CAST({quoted(name)} AS DOUBLE) AS c{i}" for i, name in enumerate(names))
    drawn = "" if whole <= most_clips else f" ORDER BY md5_number_lower(clip_id) LIMIT {most_clips}"
    read = catalog.execute(f"SELECT {picked} FROM clips{drawn}").fetchnumpy()
    values = [
        np.ma.filled(np.ma.asarray(read[f"c{i}"], dtype=np.float64), np.nan)
        for i in range(len(names))
    ]
    there = [i for i, column in enumerate(values) if not np.isnan(column).all()]
    names, values = [names[i] for i in there], [values[i] for i in there]
    if len(names) < 2:
        return Correlations(tuple(names), 0, whole, ())
    n = len(values[0])
    ranks = _Ranks(values)
    pairs = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            value, both = ranks.correlation(i, j)
            pairs.append(Correlation((names[i], names[j]), value, both, n - both))
    pairs.sort(key=lambda pair: (-abs(pair.spearman or 0), pair.columns))
    return Correlations(tuple(names), n, whole, tuple(pairs))


class _Ranks:
    """Ranks of columns among given clips, computed once per column and set of clips."""

    def __init__(self, values: Sequence[np.ndarray]) -> None:
        self._values = values
        self._there = [~np.isnan(column) for column in values]
        self._known: dict[tuple[int, bytes], np.ndarray] = {}

    def correlation(self, i: int, j: int) -> tuple[float | None, int]:
        both = self._there[i] & self._there[j]
        n = int(both.sum())
        if n < _LEAST_PAIRS:
            return None, n
        one, other = (self._of(column, both) for column in (i, j))
        spread = float(np.sqrt((one @ one) * (other @ other)))
        return (round(float(one @ other) / spread, 4) if spread else None), n

    def _of(self, column: int, clips: np.ndarray) -> np.ndarray:
        """Centred ranks; values that tie share their mean rank."""
        key = (column, np.packbits(clips).tobytes())
        if key not in self._known:
            _, place, counts = np.unique(
                self._values[column][clips], return_inverse=True, return_counts=True
            )
            middle = np.cumsum(counts) - (counts - 1) / 2
            ranks = middle[place]
            self._known[key] = ranks - ranks.mean()
        return self._known[key]

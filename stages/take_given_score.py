"""take_given_score: uses a published score that came with a clip's span."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace

GIVEN_SCORE = clip_table(("given_score", pa.float64()), ("given_score_reason", pa.string()))


class TakeGivenScore(Stage):
    """The number that the source gives with a span, such as InternVid's UMT_Score, unchanged.

    It was computed on that span, so a clip that begins or ends elsewhere (a part of a long span,
    or one that the video ends before) has none. Give each given score its own label.
    """

    name: ClassVar[str] = "take_given_score"
    reads: ClassVar[tuple[str, ...]] = (
        "split_clips.extra?",
        "split_clips.start_seconds",
        "split_clips.end_seconds",
        "download_videos.spans?",
    )
    writes: ClassVar[pa.Schema] = GIVEN_SCORE
    score: ClassVar[str | None] = "given_score"
    robust: ClassVar[bool] = True

    column: str = Field(
        min_length=1, description="the source's name for the score, a key of the clip's `extra`"
    )
    scorer: str = Field(
        min_length=1, description="who computed it, in the words that subset recipes use: UMT-SIM"
    )
    tolerance_seconds: float = Field(
        0.5, ge=0, description="how far from the given span a clip may begin or end"
    )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        yield self._transform

    def _transform(self, batch: pa.Table) -> pa.Table:
        rows = Rows(self)
        for row in batch.to_pylist():
            score, reason = self._score(row)
            rows.keep(row["clip_id"], given_score=score, given_score_reason=reason)
        return rows.table()

    def _score(self, row: dict[str, Any]) -> tuple[float | None, str | None]:
        given = dict(row.get("extra") or ()).get(self.column)
        if given is None:
            return None, f"the source gives no {self.column} with this clip"
        try:
            # Python parses 1_0 as ten, but nobody publishes numbers like that.
            score = float(given.replace("_", " "))
        except ValueError:
            return None, f"{self.column} is {given[:100]!r}, which is not a number"
        if not math.isfinite(score):
            return None, f"{self.column} is {given[:100]!r}, which is not finite"
        if not any(self._is_whole(row, span) for span in row.get("spans") or ()):
            return None, f"the clip is not the whole span that {self.column} was given with"
        return score, None

    def _is_whole(self, row: dict[str, Any], span: dict[str, Any]) -> bool:
        """Whether the clip equals this span; a span without an end ends with the video."""
        start, end = span["start_seconds"] or 0.0, span["end_seconds"]
        return abs(row["start_seconds"] - start) <= self.tolerance_seconds and (
            end is None or abs(row["end_seconds"] - end) <= self.tolerance_seconds
        )

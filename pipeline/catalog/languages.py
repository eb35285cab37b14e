"""A video's language in the views: the source's, or else what detect_language found."""

from __future__ import annotations

from clipmill.schemas.sql_text import quoted
from clipmill.schemas.step_tables import Columns, StepTable, kept
from clipmill.stages.detect_language import VIDEO_LANGUAGES

DETECTED = "language_detected"
DETECTED_COLUMNS: Columns = tuple(
    (name, VIDEO_LANGUAGES.field(name).type) for name in (DETECTED, "language_confidence")
)
"""What `clips` has of the detection, too."""


def filled(declared: str, detected: str) -> str:
    """SQL of `language`, given that of what the source says and of what was detected."""
    return f"CASE WHEN trim(coalesce({declared}, '')) = '' THEN {detected} ELSE {declared} END"


def of_videos(table: StepTable) -> str:
    """One row per video with DETECTED_COLUMNS, from the first group of shards with the video."""
    names = [name for name, _ in DETECTED_COLUMNS]
    picked = ", ".join(
        f"arg_min_null({quoted(name)}, (_base, _retry)) AS {quoted(name)}" for name in names
    )
    # What it is joined with has no removed videos.
    rows = kept(table, ["video_id", *names])
    return f"SELECT video_id, {picked} FROM ({rows}) GROUP BY video_id"

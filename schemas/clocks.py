"""Converts between a file's own clock and the time in its video.

Second 0 of a video is where players begin: the container's start time. `clock_starts_at_seconds`
is the file's timestamp there. It is null in rows of older versions, whose times are the file's
timestamps. A file with a section of a video begins at 0, which is `starts_at_seconds` of the
video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOCK_COLUMNS = ("starts_at_seconds", "clock_starts_at_seconds")
FILE_ZERO_SQL = "coalesce(starts_at_seconds, 0) - coalesce(clock_starts_at_seconds, 0)"
"""Like `file_zero_seconds`, over the columns of `videos`."""


def file_zero_seconds(row: Mapping[str, Any]) -> float:
    """The video time at which the file's timestamps would be 0; often before the video's start."""
    section, clock = (row.get(name) or 0.0 for name in CLOCK_COLUMNS)
    return section - clock

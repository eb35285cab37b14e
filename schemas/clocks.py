"""Converts between a file's own clock and the time in its video.

Second 0 of a video is where players begin: the container's start time. `clock_starts_at_seconds`
is the time stamp that the file has there. It is null in rows of older versions, whose times are
the file's time stamps as they are. A file that holds a section of a video has been written to
begin at 0, which is `starts_at_seconds` of the video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOCK_COLUMNS = ("starts_at_seconds", "clock_starts_at_seconds")
FILE_ZERO_SQL = "coalesce(starts_at_seconds, 0) - coalesce(clock_starts_at_seconds, 0)"
"""As `file_zero_seconds`, over the columns of `videos`."""


def file_zero_seconds(row: Mapping[str, Any]) -> float:
    """The time in the video at which the file's time stamps would be 0; often before its start."""
    section, clock = (row.get(name) or 0.0 for name in CLOCK_COLUMNS)
    return section - clock

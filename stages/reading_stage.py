"""Shared by stages that read untrusted files: limits for one file."""

from __future__ import annotations

from pathlib import Path

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation.isolated import (
    LEAST_MEMORY_BYTES,
    MEMORY_LIMIT_BYTES,
    STALL_SECONDS,
    TIME_LIMIT_SECONDS,
    Limits,
)
from clipmill.stages.protocol import Stage, resource


class ReadingStage(Stage):
    """Reads each file in a separate process, within `limits`."""

    stall_seconds: float = resource(
        STALL_SECONDS,
        gt=0,
        description="a file whose reading yields no frame or packet for this "
        "long is a failure of kind crash",
    )
    time_limit_seconds: float = resource(
        TIME_LIMIT_SECONDS, gt=0, description="maximum time for reading one file"
    )
    memory_limit_bytes: int = resource(
        MEMORY_LIMIT_BYTES,
        ge=LEAST_MEMORY_BYTES,
        description="maximum memory for reading one file, in a separate process; needs Linux",
    )

    @property
    def limits(self) -> Limits:
        """The limits for reading one file, under the names of their settings."""
        return Limits(
            self.stall_seconds,
            self.time_limit_seconds,
            self.memory_limit_bytes,
            settings_of=self.name,
        )


def require_file(path: Path) -> None:
    """RowFailed if the file is not available now: its disk may come back."""
    try:
        problem = None if path.is_file() else "no such file"
    except OSError as error:
        problem = error.strerror
    if problem:
        raise RowFailed(
            "transient",
            f"{path}: {problem}; mount its disk, or put the "
            "file back, then retry the failures of kind transient",
        )

"""Keeps PySceneDetect from starting programs on import.

Its module for cutting, which is not used here, then runs `ffmpeg`. In a worker, that would be one
from PATH, and if it touches the terminal, job control stops a worker in the background.
"""

from __future__ import annotations

import sys
from typing import Any

from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program


class _BeforeTheProbe:
    """A finder that finds nothing: it is queried for the module just before that is executed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "scenedetect.output.video":
            platform: Any = sys.modules["scenedetect.platform"]
            platform.get_ffmpeg_path = ffmpeg_program


def spare_the_probe() -> None:
    """Call this before PySceneDetect is imported for the first time."""
    if _BeforeTheProbe not in sys.meta_path:
        sys.meta_path.insert(0, _BeforeTheProbe)

"""Keeps PySceneDetect from starting programs on import.

Its module for cutting, which nothing here uses, tries `ffmpeg` then. That would be one of PATH's
in every worker, and one that touches the terminal stops the worker that a shell has in the
background.
"""

from __future__ import annotations

import sys
from typing import Any

from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program


class _BeforeTheProbe:
    """A finder that finds nothing: it is asked for the module just before that one is run."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "scenedetect.output.video":
            platform: Any = sys.modules["scenedetect.platform"]
            platform.get_ffmpeg_path = ffmpeg_program


def spare_the_probe() -> None:
    """To be called before PySceneDetect is imported for the first time."""
    if _BeforeTheProbe not in sys.meta_path:
        sys.meta_path.insert(0, _BeforeTheProbe)

"""Downloads part of a video.

ffmpeg cuts at key frames, so a part begins before the requested time. By default ffmpeg counts the
part's times from the first requested frame and hides the earlier ones, up to a frame off from the
URL's time. Here it keeps the video's own timestamps, counted from the start of the container as
players do. `section_files` reads them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.stages.media.fetch.extractors import NO_PLATFORM, names_videos
from clipmill.stages.media.isolation.isolated import Limits

# yt-dlp options that request a part; with sections on, a recipe can't set them.
RESERVED = frozenset(
    (
        "download_ranges",
        "force_keyframes_at_cuts",
        "external_downloader_args",
        "external_downloader",
    )
)


class NoSection(Exception):
    """The part is not available, or its position is uncertain; the whole file will do."""


@dataclass
class Section:
    """The part of a video that contains its spans, from `first_seconds` to `last_seconds`."""

    first_seconds: float
    last_seconds: float
    padding_seconds: float
    timeout_seconds: float
    is_identified: bool
    reading: Limits
    video_seconds: float | None = field(default=None, init=False)
    is_asked: bool = field(default=False, init=False)
    refused: str | None = field(default=None, init=False)

    @property
    def start_seconds(self) -> float:
        return max(0.0, self.first_seconds - self.padding_seconds)

    @property
    def end_seconds(self) -> float:
        return self.last_seconds + self.padding_seconds

    def options(self) -> dict[str, Any]:
        """yt-dlp's options for this part."""
        return {"download_ranges": self._ranges}

    def _ranges(self, info: Mapping[str, Any], downloader: Any) -> Iterator[dict[str, Any]]:
        self.video_seconds = info.get("duration")
        if not self.is_identified and not _is_platform(info):
            self.refused = "the video has no id: it would be identified by the part's bytes"
        elif not self.video_seconds:
            self.refused = "the site does not say how long the video is"
        elif self.start_seconds > 0 or self.end_seconds < self.video_seconds:
            self.is_asked = True
            yield {"start_time": self.start_seconds, "end_time": self.end_seconds}
            return
        yield {}

    def prepare(self, downloader: Any) -> None:
        """Tells ffmpeg, once the rendition is chosen, to keep the video's timestamps."""
        if not self.is_asked:
            return
        arguments = [
            "-copyts",
            "-start_at_zero",
            "-rw_timeout",
            str(round(self.timeout_seconds * 1_000_000)),
        ]
        downloader.params["external_downloader_args"] = {"ffmpeg_i": arguments}


def _is_platform(info: Mapping[str, Any]) -> bool:
    return bool(info.get("id")) and names_videos(str(info.get("extractor_key") or NO_PLATFORM))


def widest(spans: list[dict[str, Any]] | None) -> tuple[float, float] | None:
    """The first start and last end of some spans; None if one has no end, or there are no spans."""
    ends = [span["end_seconds"] for span in spans or []]
    if not ends or None in ends:
        return None
    return min(span["start_seconds"] or 0.0 for span in spans or []), max(ends)


def discard(folder: Path, but: Path | None = None) -> None:
    """Removes the files of an unusable download, so that its replacement starts clean."""
    for path in folder.iterdir():
        if path != but:
            with contextlib.suppress(OSError):
                path.unlink()

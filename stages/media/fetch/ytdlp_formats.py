"""The formats that yt-dlp chose for a video: whether picture and sound are separate files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def picture_of(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The format with pictures and no sound, if separate formats for sound were chosen too."""
    formats = info.get("requested_formats") or []
    pictures: list[Mapping[str, Any]] = [one for one in formats if one.get("vcodec") != "none"]
    if len(pictures) != 1 or len(formats) < 2 or pictures[0].get("acodec") != "none":
        return None
    return pictures[0]


def picture_alone(info: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any] | None:
    """The picture's format as yt-dlp's info; None if picture and sound are one file.

    ffmpeg fetches both at once for a part of a video, so that gives None, too.
    """
    picture = picture_of(info)
    if picture is None or params.get("allow_unplayable_formats") or "section_end" in info:
        return None
    return {
        **{name: value for name, value in info.items() if name != "requested_formats"},
        **picture,
    }

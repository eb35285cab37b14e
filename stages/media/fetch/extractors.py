"""Interprets the ids that yt-dlp's extractors return."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

from clipmill.schemas.ids import platform_video_id
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

NO_PLATFORM = "generic"
"""yt-dlp's extractor for URLs of sites that it doesn't know."""


def names_videos(extractor_key: str) -> bool:
    """Whether the ids are the site's own; ids of players embedded in arbitrary pages are not
    unique."""
    from yt_dlp.extractor import get_info_extractor

    if extractor_key.lower() == NO_PLATFORM:
        return False
    try:
        return bool(get_info_extractor(extractor_key)._VALID_URL)
    except KeyError:
        return True  # a plugin's extractor belongs to one site


_PART = re.compile(r"p|part|img_index|item|files?|filename|path|preview", re.IGNORECASE)


def video_id_of(extractor: str, platform_id: str, url: str) -> str:
    """A platform's video id, with the part of a page or folder that only the URL identifies."""
    parts = [
        value
        for value in _parts_of(url)
        if not re.search(
            rf"(?<![A-Za-z0-9]){re.escape(value)}\Z|p{re.escape(value)}\Z", platform_id
        )
    ]
    if extractor.lower() == "youtube" or not parts:
        return platform_video_id(extractor, platform_id)
    return platform_video_id(extractor, "_".join([platform_id, *parts]))


def is_part(url: str) -> bool:
    """Whether a URL names one of several videos of a page or folder."""
    return bool(_parts_of(url))


def _parts_of(url: str) -> list[str]:
    """The part of the URL that identifies one of several pictures on a page, or a file of a
    folder."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    found = [value for key, value in sorted(parse_qsl(parts.query)) if _PART.fullmatch(key)]
    name = PurePosixPath(unquote(parts.path)).name
    return [*found, name] if PurePosixPath(name).suffix.lower() in MEDIA_SUFFIXES else found

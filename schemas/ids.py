"""Ids derived from content: safe as file names, stable across machines, folders and runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container

_SAFE = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}\Z")
CLIP_ID = re.compile(r"(.*)-(?P<start>m?\d+)-(?P<end>m?\d+)\Z", re.S)
"""A clip's id; the group is its video's."""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def safe_id(text: str) -> str:
    """`text` itself if it is safe as a file name, otherwise a hash of it (20 hex digits)."""
    if _SAFE.match(text) and not text.startswith("-"):
        return text
    return "h" + _hash(text)


def is_file_name(text: str) -> bool:
    """Whether an id may be used unchanged as a file name, followed by a suffix."""
    return _FILE_NAME.match(text) is not None


def file_name(text: str) -> str:
    """An id as a file name; ids made here already are."""
    return text if is_file_name(text) else "h" + _hash(text)


def platform_video_id(extractor: str, platform_id: str) -> str:
    """`<extractor>-<id>` for a video of a platform that names its videos, e.g. `youtube-…`."""
    # YouTube ids may begin with a dash, which is harmless after the extractor's name.
    name = platform_id if _SAFE.match(platform_id) else "h" + _hash(platform_id)
    return f"{safe_id(extractor.lower())}-{name}"


def content_video_id(sha256_hex: str) -> str:
    """`file-<20 hex digits>` for a video known only by its bytes."""
    return "file-" + sha256_hex[:20]


def source_key(locator: str) -> str:
    """The key of a source: a hash of its normalised URL or absolute path (20 hex digits)."""
    return _hash(locator)


def _milliseconds(seconds: float) -> str:
    value = round(seconds * 1000)
    return f"m{-value}" if value < 0 else str(value)


def clip_id(video_id: str, start_seconds: float, end_seconds: float) -> str:
    """`<video_id>-<start_ms>-<end_ms>`; a minus sign is written as the letter m."""
    return f"{video_id}-{_milliseconds(start_seconds)}-{_milliseconds(end_seconds)}"


def is_of(key: str, videos: Container[str], source_keys: Container[str]) -> bool:
    """Whether a key is that of one of these videos or sources, or of a clip of the videos."""
    clip = CLIP_ID.match(key)
    return key in source_keys or key in videos or (clip is not None and clip[1] in videos)


def clip_seconds(clip_id: str) -> float:
    """The clip's length according to its id; 0 for an id of another form."""
    found = CLIP_ID.match(clip_id)
    if found is None:
        return 0.0
    start, end = (int(found[name].replace("m", "-")) for name in ("start", "end"))
    return max(0.0, (end - start) / 1000)

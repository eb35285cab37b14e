"""What yt-dlp's extractors say of the ids that they give."""

from __future__ import annotations

NO_PLATFORM = "generic"
"""The extractor of addresses that belong to no site that yt-dlp knows."""


def names_videos(extractor_key: str) -> bool:
    """Whether the ids are a site's own; those of players found in any page are not unique."""
    from yt_dlp.extractor import get_info_extractor

    if extractor_key.lower() == NO_PLATFORM:
        return False
    try:
        return bool(get_info_extractor(extractor_key)._VALID_URL)
    except KeyError:
        return True  # a plugin's extractor is made for some site

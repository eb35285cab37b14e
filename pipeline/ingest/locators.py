"""Parses how people name a video: a URL or a path, in quotes, brackets and the like.

Only unambiguous text is accepted. Other text is refused with what is missing; otherwise it would
become a nonexistent path, and fail much later as a missing file.
"""

from __future__ import annotations

import functools
import os
import re

# A list may have a million rows, and path objects would take most of the time; `abspath` is
# intended, because a link has a separate name.
# ruff: noqa: PTH100, PTH118, PTH122
from typing import Literal
from urllib.parse import unquote, urlsplit

from clipmill.pipeline.ingest.platforms import identify, looks_like_url
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

YOUTUBE: Literal["youtube"] = "youtube"
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_YOUTUBE_CLIP = re.compile(
    r"(?:v_)?(?P<id>[A-Za-z0-9_-]{11})"
    r"(?:_(?P<start>\d{1,6}(?:\.\d+)?)_(?P<end>\d{1,6}(?:\.\d+)?))?"
)
"""Ids as in ActivityNet (`v_` and the id), and VATEX, MSVD or Kinetics (id, start, end)."""

WATCH_URL = "https://www.youtube.com/watch?v="

_INVISIBLE = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_AT_THE_ENDS = re.compile(rf"^[\s{_INVISIBLE}]+|[\s{_INVISIBLE}]+$")
_INSIDE = re.compile(f"[{_INVISIBLE}]")
_BULLET = re.compile(r"(?:[-*+•]|\d+[.)])\s+(?=\S)")
_MARKDOWN = re.compile(r"!?\[[^\]]*\]\(\s*<?([^\s<>]+?)>?(?:\s+[\"'(].*)?\s*\)")
_WRAPPED = re.compile(
    r"""(?:"(?P<a>[^"]+)"|'(?P<b>[^']+)'|<(?P<c>[^<>]+)>|`(?P<d>[^`]+)`|“(?P<e>[^”]+)”"""
    r"""|‘(?P<f>[^’]+)’|«(?P<g>[^»]+)»|\((?P<h>[^()]+)\)|\[(?P<i>[^\[\]]+)\])[,;.]?"""
)
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}(?::\d+)?", re.I)
_MISSPELT = re.compile(r"h[tx]{1,3}ps?(?::/?(?!/)|//:?|;//)", re.I)
_ENDS_OF_HOSTS = frozenset(
    (
        "com",
        "org",
        "net",
        "edu",
        "gov",
        "io",
        "tv",
        "co",
        "info",
        "me",
        "eu",
        "uk",
        "de",
        "fr",
        "es",
        "it",
        "nl",
        "be",
        "ch",
        "at",
        "se",
        "no",
        "dk",
        "fi",
        "pl",
        "cz",
        "ru",
        "ua",
        "us",
        "ca",
        "mx",
        "br",
        "ar",
        "au",
        "nz",
        "jp",
        "cn",
        "kr",
        "tw",
        "hk",
        "sg",
        "in",
        "id",
        "th",
        "vn",
        "za",
    )
)
_DRIVE = re.compile(r"[A-Za-z]:\\")


def bare(text: str) -> str:
    """The text without what people and programs put around a URL."""
    text = _AT_THE_ENDS.sub("", text)
    if looks_like_url(text):
        return _without_invisible(text)
    for _ in range(3):
        markdown = _MARKDOWN.fullmatch(text)
        wrapped = _WRAPPED.fullmatch(text)
        bullet = _BULLET.match(text)
        if markdown is not None:
            inner = markdown[1]
        elif wrapped is not None:
            inner = next(part for part in wrapped.groups() if part is not None)
        elif bullet is not None:
            inner = text[bullet.end() :]
        else:
            break
        inner = _AT_THE_ENDS.sub("", inner)
        if looks_like_url(inner):
            return _without_invisible(inner)
        if not (
            _WRAPPED.fullmatch(inner)
            or _MARKDOWN.fullmatch(inner)
            or _is_on_known_host(inner)
            or YOUTUBE_ID.fullmatch(inner)
            or wrapped is not None
        ):
            break
        text = inner
    return text


def _without_invisible(url: str) -> str:
    return url if url.isascii() else _INSIDE.sub("", url)


def url_or_path(text: str, folder: str, platform: str | None = None) -> str:
    """The URL or absolute path that a text means; ValueError if it is neither.

    Paths are relative to `folder`. With `platform`, bare ids of that platform are accepted too.
    """
    if (
        text.startswith(("https://", "http://"))
        and text.isascii()
        and text.isprintable()
        and (" " not in text)
    ):
        return text  # the common case in long lists
    given, text = text, bare(text)
    if looks_like_url(text):
        if text.lower().startswith("file://"):
            return _path(unquote(urlsplit(text).path), folder)
        if re.search(r"\s\S*://", text):
            raise ValueError("several URLs in one place; put each on its own line")
        return text
    if platform == YOUTUBE and (found := youtube_clip(text)) is not None:
        return WATCH_URL + found[0]
    if "\0" in text:
        raise ValueError("NUL in the path")
    url = url_without_scheme(text, folder)
    if url is not None:
        return url
    if text != given.strip() and os.path.lexists(os.path.join(folder, given)):
        return _path(given, folder)
    return _path(text, folder)


def youtube_clip(text: str) -> tuple[str, tuple[float, float] | None] | None:
    """The YouTube id in a published name of a video or clip, and the clip's times in seconds."""
    match = _YOUTUBE_CLIP.fullmatch(bare(text))
    if match is None:
        return None
    if match["end"] is None:
        return match["id"], None
    start, end = float(match["start"]), float(match["end"])
    return (match["id"], (start, end)) if start < end else None


def url_without_scheme(text: str, folder: str) -> str | None:
    """The URL of a text that names a site's page or video without `https://`; otherwise None."""
    if text.startswith("//") and _is_on_known_host(text[2:]):
        return f"https:{text}"
    if _is_on_known_host(text) and not os.path.lexists(
        os.path.join(folder, re.split(r"[/?#]", text)[0])
    ):
        return f"https://{text}"
    return None


def _is_on_known_host(text: str) -> bool:
    """Whether a text begins with the name of a known site, or with `www.`."""
    host, slash, _ = text.partition("/")
    if not _HOST.fullmatch(host):
        return False
    if os.path.splitext(host)[1].lower() in MEDIA_SUFFIXES:
        return False
    return bool(slash) and (host.lower().startswith("www.") or _is_known(f"https://{text}"))


def _is_known(url: str) -> bool:
    try:
        return identify(url).extractor is not None
    except ValueError:
        return False


def _path(text: str, folder: str) -> str:
    path = os.path.abspath(os.path.join(folder, text))
    if os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES and not _is_no_path(text, folder):
        return path  # it may exist later
    if os.path.lexists(path):
        return path
    for suffix in _suffixes():
        if os.path.lexists(path + suffix):
            return path + suffix
    raise ValueError(_refusal(text))


@functools.cache
def _suffixes() -> tuple[str, ...]:
    """Commonest first, because lists also name videos by file names without a suffix."""
    first = (".mp4", ".webm", ".mkv")
    return (*first, *sorted(MEDIA_SUFFIXES.difference(first)))


def _is_no_path(text: str, folder: str) -> bool:
    if "://" in text or _MISSPELT.match(text) or _DRIVE.match(text):
        return True
    host, slash, _ = text.partition("/")
    return (
        bool(slash)
        and _HOST.fullmatch(host) is not None
        and host.rpartition(".")[2].lower() in _ENDS_OF_HOSTS
        and not os.path.lexists(os.path.join(folder, host))
    )


def _refusal(text: str) -> str:
    host = text.partition("/")[0]
    if "://" in text:
        return "there is other text before the URL; give only the URL"
    if _MISSPELT.match(text):
        return "a misspelt URL? It begins with https://"
    if _DRIVE.match(text):
        return "a Windows path; give the path on this machine"
    if youtube_clip(text) is not None:
        return (
            "neither a URL nor an existing file. For YouTube ids, set `platform: "
            "youtube` on the source in the recipe, or --set platform=youtube"
        )
    if "/" in text and _HOST.fullmatch(host):
        return f"no scheme: write https://{text} for a URL, ./{text} for a file"
    return "neither a URL (which starts with https://) nor an existing file"

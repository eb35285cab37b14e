"""Identifies the platform's video that a URL names, from the URL alone.

yt-dlp's extractors know the forms of URLs of some 1700 sites. Trying them all takes milliseconds
per URL, so the candidates are first looked up by the words of the host's name. What a URL has in
place of an id is often another name of the video: if yt-dlp's own examples show that, no id is
claimed. One id may also stand for several videos: these are distinguished by the rest of the URL,
except for parts that only affect how a video is shown.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlencode, urlsplit

from clipmill.stages.media.read.subtitles import seconds_of
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

# A short id may be unique only within a series or a channel that the pattern doesn't name.
_LEAST_ID_CHARACTERS = 6
_SEARCH = re.compile(r"[a-z]+search[a-z]*(?:\d+|all)?:\S")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTROL = re.compile(r"[\x00-\x1f]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEMES = ("http", "https", "ftp", "ftps", "rtmp", "rtmps", "rtsp", "mms")
# One in this many of yt-dlp's examples for a site may contradict.
_EXAMPLES_PER_ODD_ONE = 10
_TRACKING = re.compile(
    r"utm_\w+|fbclid|gclid|igshid?|igsh|si|feature|ref|ref_src|ref_url|referrer|source|cmp|share"
    r"|sender_\w+|is_from_webapp|is_copy_url|mibextid|rdid|spm_id_from|vd_source|from|from_spmid"
    r"|seid|ab_channel|pp|_r|s|lang|hl|locale|autoplay|muted?|loop|controls|dl"
    r"|t|start|end|time|time_continue",
    re.IGNORECASE,
)
_AT = re.compile(r"(?:^|&)t=[\w:.,]*(?=&|\Z)")
_MOMENT = re.compile(r"(?:^|&)t=(?:npt:)?([\d:.]+)?(?:,([\d:.]+))?(?=&|\Z)")
_COMMON_LABELS = frozenset(("www", "m", "com", "org", "net", "co", "gov", "edu", "ac"))


@dataclass(frozen=True, slots=True)
class Identity:
    """`locator` is the same for all forms of one video's URL if its platform is known.

    `extractor` is null if no platform is known, `platform_id` if the URL does not reliably give
    the id; `is_list` marks what yt-dlp expands: a playlist, a channel, a search. `span` is the
    part of the video that a fragment `#t=10,20` names, in seconds.
    """

    locator: str
    extractor: str | None = None
    platform_id: str | None = None
    is_list: bool = False
    span: tuple[float, float] | None = None


def looks_like_url(text: str) -> bool:
    return _SCHEME.match(text) is not None or _SEARCH.match(text) is not None


def identify(url: str) -> Identity:
    """What a URL names; ValueError if it is not a URL that can be fetched here."""
    if _SEARCH.match(url):
        return Identity(url, is_list=True)
    if _CONTROL.search(url):
        raise ValueError("control characters in the URL")
    parts = urlsplit(url)
    if parts.scheme.lower() not in _SCHEMES:
        raise ValueError(
            f"the scheme {parts.scheme!r} is not supported; allowed: {', '.join(_SCHEMES)}, file"
        )
    if not parts.hostname:
        raise ValueError("the URL has no host")
    found = _by_extractor(url, parts) or Identity(normalise(parts))
    return replace(found, span=_span(parts.fragment)) if parts.fragment else found


def _span(fragment: str) -> tuple[float, float] | None:
    """The part of a video that `#t=10,20` names; None if the fragment names no part with an end."""
    match = _MOMENT.search(fragment)
    if match is None or match[2] is None:
        return None
    try:
        start, end = seconds_of(match[1] or "0"), seconds_of(match[2])
    except ValueError:
        return None
    return (start, end) if 0 <= start < end else None


def normalise(parts: SplitResult) -> str:
    """One spelling for equivalent URLs: case of the host, default port, moment."""
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    login, at, _ = parts.netloc.rpartition("@")
    port = parts.port
    suffix = "" if port is None or _DEFAULT_PORTS.get(scheme) == port else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    kept = _address_behind(parts.fragment)
    fragment = f"#{kept}" if kept else ""
    return f"{scheme}://{login}{at}{host}{suffix}{parts.path or '/'}{query}{fragment}"


def _address_behind(fragment: str) -> str:
    """The part of a fragment that may name a page: script-driven sites keep addresses there.

    A single word is a place in the page, `t=10` a moment.
    """
    kept = _AT.sub("", fragment).strip("&")
    return kept if kept.startswith("!") or "/" in kept or "=" in kept else ""


def _by_extractor(url: str, parts: SplitResult) -> Identity | None:
    for extractor in _candidates((parts.hostname or "").lower()):
        if extractor.suitable(url):
            return _identity(extractor, url, parts)
    return None


def _identity(extractor: Any, url: str, parts: SplitResult) -> Identity:
    name = extractor.ie_key().lower()
    if name == "youtubetab":
        # A video shown within a list is still that one video.
        video = parse_qs(parts.query).get("v", [""])[0]
        if re.fullmatch(r"[\w-]{11}", video):
            return Identity(f"youtube {video}", "youtube", video)
        return Identity(normalise(parts), name, is_list=True)
    if extractor._RETURN_TYPE == "playlist":
        return Identity(normalise(parts), name, is_list=True)
    platform_id = extractor.get_temp_id(url)
    match = extractor._match_valid_url(url)
    if not platform_id or not match or len(platform_id) < _LEAST_ID_CHARACTERS:
        return Identity(normalise(parts), name)
    others = [
        f" {group}={value}"
        for group, value in sorted(match.groupdict().items())
        if value is not None and group != "id"
    ]
    is_sure = _gives_its_ids(extractor.ie_key())
    if name != "youtube":
        others += _rest(parts, url[match.end() :], is_sure=is_sure)
    return Identity(
        f"{name} {platform_id}{''.join(others)}", name, platform_id if is_sure else None
    )


def _rest(parts: SplitResult, behind: str, *, is_sure: bool) -> list[str]:
    """What a URL contains besides the id, which may distinguish videos of one page or folder."""
    found = []
    tail = re.split(r"[?#]", behind, maxsplit=1)[0].strip("/") if behind[:1] != "?" else ""
    # After a reliable id, most sites accept any words.
    if tail and (not is_sure or PurePosixPath(tail).suffix.lower() in MEDIA_SUFFIXES):
        found.append(f" /{tail}")
    query = sorted(
        (key, value) for key, value in parse_qsl(parts.query) if not _TRACKING.fullmatch(key)
    )
    if query:
        found.append(f" ?{urlencode(query)}")
    if kept := _address_behind(parts.fragment):
        found.append(f" #{kept}")
    return found


@functools.cache
def _gives_its_ids(extractor_key: str) -> bool:
    """Whether the ids of yt-dlp's examples for a site match those parsed from their URLs."""
    from yt_dlp.extractor import get_info_extractor

    extractor = get_info_extractor(extractor_key)
    if hasattr(extractor, "_module"):  # a lazy stand-in, which has no examples
        extractor = getattr(importlib.import_module(extractor._module), extractor.__name__)
    right = wrong = 0
    for example in getattr(extractor, "_TESTS", None) or [getattr(extractor, "_TEST", {})]:
        said = (example.get("info_dict") or {}).get("id")
        if said is None or any(word.startswith("playlist") for word in example):
            continue
        if not extractor.suitable(example["url"]) or extractor.get_temp_id(example["url"]) != said:
            wrong += 1
        else:
            right += 1
    return right > 0 and wrong * _EXAMPLES_PER_ODD_ONE <= right


@functools.lru_cache(maxsize=1 << 16)
def _candidates(host: str) -> tuple[Any, ...]:
    """Extractors whose pattern contains a word of the host's name, in yt-dlp's own order."""
    labels = host.split(".")
    if len(labels) < 2 or labels[-1].isdigit():
        return ()  # a machine of the local network, or an address
    index, extractors = _word_index()
    found: set[int] = set()
    for label in labels[:-1]:
        if label in _COMMON_LABELS:
            continue
        sets = [index.get(word, set()) for word in label.split("-") if word]
        if sets:
            found |= set.intersection(*sets)
    return tuple(extractors[number] for number in sorted(found))


@functools.cache
def _word_index() -> tuple[dict[str, set[int]], list[Any]]:
    from yt_dlp.extractor import gen_extractor_classes

    index: dict[str, set[int]] = defaultdict(set)
    extractors = list(gen_extractor_classes())
    for number, extractor in enumerate(extractors):
        patterns = extractor._VALID_URL or ()
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            # Without the escapes, so that `\bhost` gives the word `host`.
            plain = re.sub(r"\\[a-zA-Z]", " ", pattern.replace("(?x)", "")).lower()
            for word, optional in re.findall(r"([a-z0-9]+)(\?)?", plain):
                index[word].add(number)
                if optional:  # `hosts?` is also `host`
                    index[word[:-1]].add(number)
    return dict(index), extractors

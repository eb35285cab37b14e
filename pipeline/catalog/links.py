"""Links to a moment of a video, in the form that the video's site understands."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

# By the end of the host's name, the site's parameter for the second to start at; with `#` if it
# belongs in the fragment.
_FORMS = {
    "youtube.com": "t={}s",
    "youtu.be": "t={}s",
    "youtube-nocookie.com": "start={}",
    "vimeo.com": "#t={}s",
    "dailymotion.com": "start={}",
    "dai.ly": "start={}",
    "bilibili.com": "t={}",
    "twitch.tv": "t={}s",
    "rutube.ru": "t={}",
    "vk.com": "t={}s",
    "facebook.com": "t={}",
    "ted.com": "t={}",
    "odysee.com": "t={}",
    "rumble.com": "start={}",
    "archive.org": "start={}",
    "streamable.com": "t={}",
    "nicovideo.jp": "from={}",
}
_TIMES = ("t", "start", "time_continue", "from", "end")
_TIME_FRAGMENT = re.compile(r"(?:^|&)t=(?:npt:)?[\d:.hms,]*")


def clip_link(
    url: str | None, start_seconds: float | None, end_seconds: float | None
) -> str | None:
    """A video's URL at a clip's start: `&t=12s` for YouTube, `#t=12.5,16` for unknown sites.

    Anything that is not a web address is returned unchanged.
    """
    if url is None or start_seconds is None:
        return url
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:
        return url
    if parts.scheme.lower() not in ("http", "https") or not host:
        return url
    form = next(
        (form for name, form in _FORMS.items() if host == name or host.endswith("." + name)), None
    )
    if form is None:
        return _with_fragment(
            parts,
            f"t={_number(start_seconds)}"
            + ("" if end_seconds is None else f",{_number(end_seconds)}"),
        )
    own = form.format(int(start_seconds))
    if own.startswith("#"):
        return _with_fragment(parts, own[1:])
    name, _, value = own.partition("=")
    query = [
        (key, old)
        for key, old in parse_qsl(parts.query, keep_blank_values=True)
        if key not in _TIMES
    ]
    fragment = _TIME_FRAGMENT.sub("", parts.fragment).strip("&")
    return parts._replace(
        query=urlencode([*query, (name, value)], safe=":/,@"), fragment=fragment
    ).geturl()


def _with_fragment(parts: SplitResult, time: str) -> str:
    """The URL with a time in the fragment, replacing an earlier one; the rest of the fragment
    stays."""
    others = _TIME_FRAGMENT.sub("", parts.fragment).strip("&")
    return parts._replace(fragment=f"{others}&{time}" if others else time).geturl()


def _number(seconds: float) -> str:
    return f"{max(seconds, 0.0):.3f}".rstrip("0").rstrip(".")

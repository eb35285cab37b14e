"""Cookies for requests: the user's, and those that servers set, if they can be sent back."""

from __future__ import annotations

import http.cookiejar
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import UsageError


class _Sendable(http.cookiejar.DefaultCookiePolicy):
    """Drops cookies that would make every further request to their host impossible."""

    def set_ok(self, cookie: http.cookiejar.Cookie, request: Any) -> bool:
        return _is_sendable(cookie) and super().set_ok(cookie, request)


def cookie_jar(file: Path | None) -> http.cookiejar.CookieJar:
    """A cookie jar, filled from `file` if one is given."""
    if file is None:
        return http.cookiejar.CookieJar(_Sendable())
    if not file.is_file():
        raise UsageError(f"download_videos.cookies_file: {file} is not a file")
    from yt_dlp.cookies import YoutubeDLCookieJar

    jar = YoutubeDLCookieJar(str(file))
    try:
        jar.load()
    except (OSError, UnicodeError) as error:  # http.cookiejar's LoadError is an OSError
        raise UsageError(
            f"download_videos.cookies_file: {file} is not in Netscape format: {error}"
        ) from error
    for cookie in list(jar):
        if not _is_sendable(cookie):
            jar.clear(cookie.domain, cookie.path, cookie.name)
    jar.set_policy(_Sendable())
    plain: http.cookiejar.CookieJar = jar
    return plain


def _is_sendable(cookie: http.cookiejar.Cookie) -> bool:
    text = f"{cookie.name}{cookie.value or ''}{cookie.path}"
    return text.isascii() and text.isprintable()

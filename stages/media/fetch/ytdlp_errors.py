"""Classifies yt-dlp's errors, and passes its messages to the run's log."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from clipmill.schemas.errors import ErrorKind, RowFailed
from clipmill.stages.media.fetch.http_answers import (
    is_challenge,
    problem_of_status,
    retry_after_seconds,
)
from clipmill.stages.media.fetch.problems import BotCheck, PassingProblem

_BOT_CHECK = re.compile(r"not a bot|anti-?bot|captcha|unusual traffic", re.IGNORECASE)
# The first pattern that matches decides; these are the site's words, as yt-dlp passes them on.
_KINDS: tuple[tuple[str, ErrorKind], ...] = (
    (rf"{_BOT_CHECK.pattern}|robots", "blocked"),
    (
        r"private video|video is private|has been removed|been deleted|been terminated|no longer "
        r"available|does not exist|copyright",
        "permanent",
    ),
    (r"your country|your location|geo.?restrict|geo.?block", "permanent"),
    (r"drm", "permanent"),
    (
        r"sign in|log ?in|--cookies|cookies|members.only|join this channel|account|password"
        r"|age.restricted|confirm your age|premium|subscri",
        "blocked",
    ),
    (
        r"premieres in|will begin in|is live|not yet|offline|try again later|rate.limit"
        r"|too many requests",
        "transient",
    ),
    (
        r"timed? ?out|connection (reset|refused|aborted|closed)|temporary failure|name or service"
        r"|unreachable|incomplete ?read|bytes read|did not get any data blocks|more expected"
        r"|remote end closed",
        "transient",
    ),
    (r"certificate", "permanent"),
    (
        r"unsupported url|no video formats|requested format is not available|not available"
        r"|unavailable",
        "permanent",
    ),
)
_KINDS_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in _KINDS)


logger = logging.getLogger("clipmill.yt_dlp")
logger.setLevel(logging.INFO)  # below Python's default level


class Log:
    """Keeps the first error, which yt-dlp would print; sends its messages to the run's log."""

    def __init__(self) -> None:
        self.first_error: str | None = None

    def debug(self, message: str) -> None:
        """Progress and details, which nobody reads here."""

    info = debug

    def warning(self, message: str) -> None:
        logger.info("%s", message)

    def error(self, message: str) -> None:
        logger.info("%s", message)
        self.first_error = self.first_error or message


@contextlib.contextmanager
def failures_by_kind(log: Log, folder: Path) -> Iterator[None]:
    """Turns yt-dlp's errors into failures of the right kind; a full disk is passed on."""
    import yt_dlp

    try:
        yield
    except (RowFailed, PassingProblem):
        raise
    except (
        yt_dlp.utils.YoutubeDLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        check_for_room(error, folder)
        raise problem_of(error, log.first_error) from error


def problem_of(error: BaseException, first_error: str | None) -> RowFailed | PassingProblem:
    """A yt-dlp error as a failure of the right kind, with the first message."""
    from yt_dlp.networking.exceptions import CertificateVerifyError, HTTPError, TransportError
    from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, UnsupportedError

    message = clean(first_error or str(error))
    # Our own errors are wrapped in yt-dlp's.
    for cause in _chain(error):
        if isinstance(cause, RowFailed | PassingProblem):
            return cause
    for cause in _chain(error):
        if isinstance(cause, GeoRestrictedError | UnsupportedError | CertificateVerifyError):
            return RowFailed("permanent", message)
        if isinstance(cause, HTTPError):
            if is_challenge(cause.response.headers):
                return BotCheck(message, urlsplit(cause.response.url or "").hostname)
            after = cause.response.headers.get("Retry-After")
            found = problem_of_status(cause.status, cause.response.url, after)
            if isinstance(found, PassingProblem):
                return PassingProblem(
                    message,
                    retry_after_seconds=retry_after_seconds(after),
                    whole_host=found.whole_host,
                    host=found.host,
                )
            # The site's own words, if any, distinguish a private video from a bot check.
            return _failed(_kind_of(message) or found.kind, message)
        if isinstance(cause, TransportError | ContentTooShortError | TimeoutError):
            return PassingProblem(message)
    status = re.search(r"HTTP Error (\d{3})", message)
    if status:
        found = problem_of_status(int(status[1]), "")
        return (
            PassingProblem(message, whole_host=found.whole_host)
            if isinstance(found, PassingProblem)
            else _failed(found.kind, message)
        )
    kind = _kind_of(message) or "permanent"
    return PassingProblem(message) if kind == "transient" else _failed(kind, message)


def _failed(kind: ErrorKind, message: str) -> RowFailed:
    return BotCheck(message) if _BOT_CHECK.search(_words(message)) else RowFailed(kind, message)


def _kind_of(message: str) -> ErrorKind | None:
    words = _words(message)
    return next((kind for pattern, kind in _KINDS_COMPILED if pattern.search(words)), None)


def _words(message: str) -> str:
    """A message without the video's id and without URLs, which could match by accident."""
    return re.sub(r"\A\[[^\]]*\] \S+: |https?://\S+", "", message)


def clean(message: str) -> str:
    message = re.sub(r"\x1b\[[0-9;]*m|\r", "", message)
    message = message.removeprefix("ERROR: ").removeprefix("[download] Got error: ")
    return re.sub(r"; please report this issue on .*", "", message, flags=re.S).strip()


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and all its causes, as yt-dlp keeps them."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        one = todo.pop(0)
        if not isinstance(one, BaseException) or one in seen:
            continue
        seen.append(one)
        todo += [
            getattr(one, "cause", None),
            (getattr(one, "exc_info", None) or [None] * 2)[1],
            one.__cause__,
            one.__context__,
        ]
    return seen


def check_for_room(error: BaseException, folder: Path) -> None:
    """OSError if yt-dlp's error was caused by a full disk."""
    if os.strerror(errno.ENOSPC) in str(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error

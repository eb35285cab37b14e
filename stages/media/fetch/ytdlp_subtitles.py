"""Fetches subtitles with yt-dlp: chooses the tracks, and fetches each one separately.

The media is there by then. A missing track affects nothing else; a site that refuses tracks gets
no requests for tracks for a while, but requests for media continue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import RowFailed, storable
from clipmill.stages.media.fetch.ytdlp_errors import Log, failures_by_kind
from clipmill.stages.media.fetch.ytdlp_process import Worker
from clipmill.stages.media.read.speech import own_language, same_language
from clipmill.stages.media.read.subtitles import FORMATS, decoded, parse_subtitles

OPTIONS = frozenset(
    ("writesubtitles", "writeautomaticsub", "allsubtitles", "subtitleslangs", "subtitlesformat")
)
"""yt-dlp's own subtitle options; if a recipe sets one, yt-dlp chooses."""
KIND = "subtitles"
OWN = "own"
_ORIGINAL = "-orig"


@dataclass(frozen=True)
class WantedTracks:
    """Which tracks of a video to fetch; `language` is the video's, if known."""

    languages: Sequence[str]
    people: bool = True
    automatic: bool = True
    translated: bool = False
    language: str | None = None
    chosen_by_yt_dlp: bool = False

    def options(self) -> dict[str, Any]:
        """yt-dlp options that make its extractors look for tracks; the choice is made here."""
        return {
            "writesubtitles": self.people and bool(self.languages),
            "writeautomaticsub": self.automatic and bool(self.languages),
            "subtitleslangs": list(self.languages),
            "subtitlesformat": "/".join(FORMATS),
        }


@dataclass(frozen=True)
class Track:
    """One track that a site offers; `source` is yt-dlp's description of its location."""

    language: str
    automatic: bool
    source: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.language} (automatic)" if self.automatic else self.language


@dataclass(frozen=True)
class Tracks:
    """The tracks to fetch for one video, and the cookies to use."""

    found: Sequence[Track] = ()
    cookies: Sequence[Cookie] = ()


@dataclass
class Taken:
    """The lines of the fetched tracks, their names, and the problems of the others."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    problems: dict[str, RowFailed] = field(default_factory=dict)

    def problem(self) -> RowFailed | None:
        """All problems with tracks as one failure; a temporary one decides its kind."""
        if not self.problems:
            return None
        kinds = [problem.kind for problem in self.problems.values()]
        kind = "transient" if "transient" in kinds else kinds[0]
        return RowFailed(
            kind, "; ".join(f"{name}: {problem.message}" for name, problem in self.problems.items())
        )


def choose_tracks(info: Mapping[str, Any], wanted: WantedTracks, downloader: Any) -> Tracks:
    """The tracks to fetch, of those that a site offers for a video."""
    by_people, automatic = info.get("subtitles") or {}, info.get("automatic_captions") or {}
    if wanted.chosen_by_yt_dlp:
        chosen = downloader.choose_subtitles(info.get("id"), by_people, automatic) or {}
        return Tracks(
            [
                _track(language, language not in by_people, [source], info)
                for language, source in sorted(chosen.items())
            ],
            list(downloader.cookiejar),
        )
    own = own_language(wanted.language or info.get("language"), automatic)
    found = []
    if wanted.people:
        found += [
            _track(code, False, formats, info)
            for code, formats in sorted(by_people.items())
            if formats and _matches(code, wanted.languages, own)
        ]
    if wanted.automatic:
        spoken = _spoken(list(automatic), list(by_people), own)
        for code, formats in sorted(automatic.items()):
            if (
                formats
                and (code in spoken or wanted.translated)
                and (_matches(code, wanted.languages, own))
            ):
                found.append(_track(code, True, formats, info))
    # The most important track first, because the site may refuse the later ones.
    found.sort(key=lambda track: (not same_language(track.language, own), track.automatic))
    return Tracks(found, list(downloader.cookiejar))


def _spoken(automatic: list[str], by_people: list[str], own: str | None) -> list[str]:
    """The automatic tracks in the spoken language: those that are not translations."""
    originals = [code for code in automatic if code.endswith(_ORIGINAL)]
    if originals:
        return [code for code in originals if same_language(code, own)] or originals
    names = {*automatic, *by_people}
    plain = [code for code in automatic if code.partition("-")[2] not in names]
    if own is None:
        return plain
    exact = [code for code in plain if code.lower() == own.lower()]
    return exact or [code for code in plain if same_language(code, own)]


def _matches(code: str, patterns: Sequence[str], own: str | None) -> bool:
    return any(
        re.fullmatch(pattern, code)
        or (pattern == OWN and (same_language(code, own) or code.endswith(_ORIGINAL)))
        for pattern in patterns
    )


def _track(
    language: str, automatic: bool, formats: Sequence[Mapping[str, Any]], info: Mapping[str, Any]
) -> Track:
    ranked = [one for kind in FORMATS for one in reversed(formats) if one.get("ext") == kind]
    source = dict(ranked[0] if ranked else formats[-1])
    if source.get("http_headers") is None:
        source["http_headers"] = info.get("http_headers") or {}
    return Track(language, automatic, source)


def fetch_track(
    worker: Worker,
    track: Track,
    number: int,
    folder: Path,
    options: Mapping[str, Any],
    cookies: Sequence[Cookie],
) -> list[dict[str, Any]]:
    """The lines of one track, as dicts of SUBTITLE with their `words`.

    Raises RowFailed, or PassingProblem if another attempt may succeed.
    """
    data = _data(worker, track, folder / f"track-{number}", options, cookies)
    try:
        spans = parse_subtitles(data, track.source.get("ext") or "", automatic=track.automatic)
    except ValueError as error:
        raise RowFailed("bad_media", str(error)) from error
    return [
        {
            "start_seconds": span.start_seconds,
            "end_seconds": span.end_seconds,
            "text": storable(span.text),
            "language": storable(track.language),
            "automatic": track.automatic,
            "words": [{"seconds": word.seconds, "text": storable(word.text)} for word in span.words]
            or None,
        }
        for span in spans
    ]


def _data(
    worker: Worker, track: Track, path: Path, options: Mapping[str, Any], cookies: Sequence[Cookie]
) -> str:
    given = track.source.get("data")
    if isinstance(given, str):
        return given
    from clipmill.stages.media.fetch.ytdlp_requests import only_by_program, polite_yt_dlp

    log = Log()
    # A refused part is not requested again at once.
    asked = {**options, "logger": log, "fragment_retries": 0}
    with failures_by_kind(log, path.parent), polite_yt_dlp(worker)(asked) as downloader:
        downloader.take_cookies(cookies)
        source = dict(track.source)
        if (problem := only_by_program(source, downloader, worker)) is not None:
            raise problem
        try:
            downloader.dl(str(path), source, subtitle=True)
            return decoded(path.read_bytes())
        except FileNotFoundError as error:
            raise RowFailed("permanent", log.first_error or "the site gave no file") from error

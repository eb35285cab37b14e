"""Wraps yt-dlp: its options, one video, one list.

Functions that take a `Worker` run in yt-dlp's process, which alone imports yt-dlp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import RowFailed, RowRejected, storable
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.extractors import NO_PLATFORM, names_videos
from clipmill.stages.media.fetch.problems import BotCheck, LeftAlone, PassingProblem
from clipmill.stages.media.fetch.sections import NoSection, Section, discard
from clipmill.stages.media.fetch.ytdlp_errors import Log, check_for_room, clean, problem_of
from clipmill.stages.media.fetch.ytdlp_formats import picture_alone
from clipmill.stages.media.fetch.ytdlp_options import copied_cookies
from clipmill.stages.media.fetch.ytdlp_process import Worker
from clipmill.stages.media.fetch.ytdlp_requests import only_by_program, polite_yt_dlp
from clipmill.stages.media.fetch.ytdlp_sound import SeparateSound
from clipmill.stages.media.fetch.ytdlp_subtitles import Tracks, WantedTracks, choose_tracks
from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program

if TYPE_CHECKING:
    from clipmill.stages.media.fetch.ytdlp_calls import Call

# Errors of an extractor that fails to parse a page.
_MISTAKES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def base_options(
    scratch: Path,
    *,
    cookies_file: Path | None = None,
    proxy: str | None = None,
    timeout_seconds: float | None = None,
    user_agent: str | None = None,
) -> dict[str, Any]:
    """Options common to all uses here; `scratch` is a folder for this call only."""
    options: dict[str, Any] = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "no_color": True,
        "ffmpeg_location": ffmpeg_program(),
    }
    if cookies_file is not None:
        options["cookiefile"] = copied_cookies(cookies_file, scratch)
    if proxy is not None:
        options["proxy"] = proxy
    if timeout_seconds is not None:
        options["socket_timeout"] = timeout_seconds
    if user_agent is not None:
        options["http_headers"] = {"User-Agent": user_agent}
    return options


def _at_a_loss(error: Exception) -> RowFailed:
    return RowFailed(
        "permanent",
        f"yt-dlp can't handle this page ({type(error).__name__}: {error}); a newer version may",
    )


@dataclass(frozen=True)
class Page:
    """What a site says about a video: all of it, and what can be fetched separately.

    `sound` is None if it is in the picture's file, or was fetched with it.
    """

    info: dict[str, Any]
    tracks: Tracks
    sound: SeparateSound | None


@dataclass(frozen=True)
class Video:
    """A downloaded file and what the platform says about it.

    `platform_id` is null if the page belongs to no platform that identifies its videos. A file
    that holds a section has the time in the video at which it begins, and the length of the whole
    video. If the site doesn't state sizes, and there are renditions of lower rates than this
    one's, `lesser_than` is its rate (kbit/s). `page` has what is still to be fetched.
    """

    path: Path
    extractor: str
    platform_id: str | None
    metadata: dict[str, Any]
    page: Page
    notes: dict[str, str] = field(default_factory=dict)
    starts_at_seconds: float | None = None
    video_seconds: float | None = None
    lesser_than: float | None = None


@dataclass(frozen=True)
class Asked:
    """What to request from a site: options, and which subtitles.

    With `leaves_sound`, sound in a separate file is not fetched with the picture.
    """

    options: Mapping[str, Any]
    wanted: WantedTracks = field(default_factory=lambda: WantedTracks(()))
    section: Section | None = None
    with_media: bool = True
    leaves_sound: bool = False


def download(call: Call, url: str, folder: Path, asked: Asked) -> Video:
    """Downloads one video with yt-dlp into `folder`; rejects it before the download if possible.

    Of a section only that part is fetched, or the whole file if the part is not certain. Raises
    RowRejected, RowFailed, or PassingProblem if another attempt may succeed.
    """
    if asked.section is None:
        return call(_download, url, folder, asked)
    try:
        video, section = call(_download_section, url, folder, asked, asked.section)
        if section.refused is not None:
            return replace(video, notes={**video.notes, "section_refused": section.refused})
        return _taken(video, section, folder) if section.is_asked else video
    except NoSection as error:
        discard(folder)
        video = call(_download, url, folder, replace(asked, section=None))
        return replace(video, notes={**video.notes, "section_refused": str(error)})


def _download_section(
    worker: Worker, url: str, folder: Path, asked: Asked, section: Section
) -> tuple[Video, Section]:
    """The part if possible; the whole file if the part would not be smaller.

    Raises NoSection if only the part is not available.
    """
    try:
        return _download(worker, url, folder, replace(asked, section=section)), section
    except (BotCheck, LeftAlone):
        raise  # the whole file would fail the same way
    except (RowFailed, PassingProblem) as problem:
        if section.is_asked:
            raise NoSection(str(problem) or "ffmpeg could not fetch the part") from problem
        raise


def _taken(video: Video, section: Section, folder: Path) -> Video:
    """The part, rewritten to begin at 0."""
    from clipmill.stages.media.fetch.section_files import take

    whole_suffix = video.path.suffix.lower()
    target = folder / f"section{whole_suffix if whole_suffix in ('.mkv', '.webm') else '.mp4'}"
    begins = take(section, video.path, target)
    video.path.unlink()
    return replace(
        video, path=target, starts_at_seconds=begins, video_seconds=section.video_seconds
    )


def _download(worker: Worker, url: str, folder: Path, asked: Asked) -> Video:
    page = _extract(worker, url, folder, asked)
    info = page.info
    notes: dict[str, str] = {}
    protocol = str(info.get("protocol") or "")
    if asked.section is None and protocol.startswith(("m3u8", "http_dash_segments", "ism", "f4m")):
        notes["protocol"] = protocol
    files = [Path(item["filepath"]) for item in info.get("requested_downloads") or []]
    if len(files) != 1 or not files[0].is_file():
        raise RowFailed(
            "permanent", f"yt-dlp gave {counted(len(files), 'file')} for {url}, not one"
        )
    extractor = str(info.get("extractor_key") or NO_PLATFORM)
    platform_id = None
    if info.get("id") and names_videos(extractor):
        platform_id = storable(str(info["id"]))
    return Video(
        path=files[0],
        extractor=NO_PLATFORM if platform_id is None else extractor.lower(),
        platform_id=platform_id,
        metadata=_metadata(info),
        page=page,
        notes=notes,
        lesser_than=_rate_of_unknown_size(info),
    )


def _rate_of_unknown_size(info: Mapping[str, Any]) -> float | None:
    """The rate of the chosen rendition, if its size isn't stated and lower rates exist."""
    taken = next(iter(info.get("requested_formats") or ()), info)
    rate = taken.get("tbr")
    if rate is None or None not in (taken.get("width"), taken.get("height")):
        return None
    lesser = any(
        (one.get("tbr") or rate) < rate
        for one in info.get("formats") or ()
        if one.get("vcodec") != "none"
    )
    return rate if lesser else None


def read_page(worker: Worker, url: str, folder: Path, asked: Asked) -> Page:
    """What a site says about a video whose media is already there."""
    return _extract(worker, url, folder, replace(asked, with_media=False, section=None))


def _extract(worker: Worker, url: str, folder: Path, asked: Asked) -> Page:
    import yt_dlp

    section = asked.section
    declined: list[RowRejected | RowFailed] = []

    def decide(info: dict[str, Any], *, incomplete: bool) -> str | None:
        if not incomplete:
            worker.got_through()  # even if its media then fails
        problem = _decline(info, worker, incomplete) if asked.with_media else None
        if problem is None and not incomplete and asked.with_media:
            # Problems with the sound are reported when it is fetched.
            alone = picture_alone(info, downloader.params) if asked.leaves_sound else None
            problem = only_by_program(alone or info, downloader, worker)
        if problem is not None:
            declined.append(problem)
        elif section is not None and not incomplete:
            section.prepare(downloader)
        return None if problem is None else str(problem)

    log = Log()
    place = str(folder).replace("%", "%%") + "/video.%(ext)s"
    options = {
        **asked.wanted.options(),
        **asked.options,
        "logger": log,
        "match_filter": decide,
        "noplaylist": True,
        "extract_flat": "in_playlist",
        "outtmpl": {"default": place},
        **(section.options() if section is not None else {}),
    }
    try:
        with polite_yt_dlp(worker)(options) as downloader:
            downloader.leaves_sound = asked.leaves_sound
            info = downloader.extract_info(url, download=asked.with_media)
    except yt_dlp.utils.DownloadError as error:
        check_for_room(error, folder)
        raise problem_of(error, log.first_error) from error
    except _MISTAKES as error:
        raise _at_a_loss(error) from error
    if declined:
        raise declined[0]
    if info is None:
        raise RowFailed("permanent", clean(log.first_error or "yt-dlp found nothing"))
    if info.get("_type") in ("playlist", "multi_video"):
        entries = [entry for entry in info.get("entries") or [] if entry]
        is_read = "requested_downloads" if asked.with_media else "formats"
        if len(entries) == 1 and entries[0].get(is_read):
            return _page(entries[0], asked, downloader)
        if len(entries) == 1 and entries[0].get("url") and entries[0]["url"] != url:
            return _extract(worker, entries[0]["url"], folder, asked)
        raise _many(len(entries))
    return _page(info, asked, downloader)


def _page(info: dict[str, Any], asked: Asked, downloader: Any) -> Page:
    is_missing = downloader.has_left_sound or not asked.with_media
    try:
        info = downloader.sanitize_info(info)
        tracks = choose_tracks(info, asked.wanted, downloader)
        sound = SeparateSound.of(info, list(downloader.cookiejar)) if is_missing else None
    except _MISTAKES as error:
        raise _at_a_loss(error) from error
    return Page(info, tracks, sound)


def _many(count: int) -> RowFailed:
    return RowFailed(
        "permanent",
        f"the page holds {counted(count, 'video')}, not one; list it as "
        "a separate source (`url:` in the recipe) to expand it",
    )


def _decline(
    info: dict[str, Any], worker: Worker, incomplete: bool
) -> RowRejected | RowFailed | None:
    if (info.get("n_entries") or 1) > 1:
        return _many(info["n_entries"])
    if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming"):
        return RowFailed(
            "transient", "the video is live or not yet published; try again when it is over"
        )
    sides = [side for side in (info.get("width"), info.get("height")) if side is not None]
    # One side alone doesn't tell which is the shorter.
    short_side = min(sides) if len(sides) == 2 and not incomplete else None
    extractor = str(info.get("extractor_key") or NO_PLATFORM)
    try:
        if info.get("id") and names_videos(extractor):
            worker.check_known(
                extractor.lower(), storable(str(info["id"])), info.get("webpage_url")
            )
        worker.judge(info.get("duration"), short_side)
    except RowRejected as problem:
        return problem
    return None


def _metadata(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a site says, as text or omitted: extractors pass on whatever the page contains."""
    return {
        "title": _text(info.get("title")),
        "description": _text(info.get("description")),
        "uploader": _text(info.get("uploader")) or _text(info.get("channel")),
        "tags": _texts(info.get("tags")) or None,
        "license": _text(info.get("license")),
        "language": _text(info.get("language")),
        "category": next(iter(_texts(info.get("categories"))), None),
    }


def _text(value: Any) -> str | None:
    if isinstance(value, bool | None) or not isinstance(value, str | int | float):
        return None
    return storable(str(value))


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple | set) else [value]
    return [text for one in values if (text := _text(one)) is not None]


def expand_list(
    worker: Worker, url: str, options: Mapping[str, Any], results: int
) -> list[dict[str, Any]]:
    """The entries of a playlist, channel or search, or the one video that `url` is.

    The entries themselves are not requested. Raises RowFailed or PassingProblem.
    """
    import yt_dlp

    log = Log()
    asked = {
        **options,
        "logger": log,
        "extract_flat": "in_playlist",
        "skip_download": True,
        "noplaylist": False,
        "playlistend": results,
    }
    try:
        with polite_yt_dlp(worker)(asked) as downloader:
            info = downloader.sanitize_info(downloader.extract_info(url, download=False))
    except yt_dlp.utils.DownloadError as error:
        raise problem_of(error, log.first_error) from error
    except _MISTAKES as error:
        raise _at_a_loss(error) from error
    if not info:
        raise RowFailed("permanent", clean(log.first_error or "yt-dlp found nothing"))
    if info.get("_type") in ("playlist", "multi_video"):
        return [entry for entry in info.get("entries") or [] if entry][:results]
    return [info]

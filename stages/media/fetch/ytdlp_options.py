"""Defines which yt-dlp options a recipe may set.

A recipe is plain data that may come from anybody, and yt-dlp has options that run shell commands,
start programs by path, or write files anywhere. So a recipe may set only the options listed here;
an option that a newer yt-dlp adds is refused until it has been reviewed.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import nearest
from clipmill.stages.media.fetch.proxies import check_yt_dlp_proxy

ALLOWED = frozenset(
    (
        # identity and network
        "username",
        "password",
        "videopassword",
        "twofactor",
        "ap_mso",
        "ap_username",
        "ap_password",
        "usenetrc",
        "netrc_location",
        "cookiefile",
        "cookiesfrombrowser",
        "client_certificate",
        "client_certificate_key",
        "client_certificate_password",
        "proxy",
        "source_address",
        "geo_verification_proxy",
        "geo_bypass",
        "geo_bypass_country",
        "geo_bypass_ip_block",
        "http_headers",
        "impersonate",
        "legacyserverconnect",
        "nocheckcertificate",
        "prefer_insecure",
        "age_limit",
        # pace and retries
        "socket_timeout",
        "retries",
        "fragment_retries",
        "extractor_retries",
        "file_access_retries",
        "sleep_interval",
        "max_sleep_interval",
        "sleep_interval_requests",
        "sleep_interval_subtitles",
        "ratelimit",
        "throttledratelimit",
        "buffersize",
        "noresizebuffer",
        "http_chunk_size",
        "concurrent_fragment_downloads",
        "continuedl",
        "nopart",
        "skip_unavailable_fragments",
        # rendition
        "format",
        "format_sort",
        "format_sort_force",
        "prefer_free_formats",
        "check_formats",
        "allow_multiple_video_streams",
        "allow_multiple_audio_streams",
        "allow_unplayable_formats",
        "ignore_no_formats_error",
        "merge_output_format",
        "fixup",
        "min_filesize",
        "max_filesize",
        "dynamic_mpd",
        "hls_prefer_native",
        "hls_split_discontinuity",
        "hls_use_mpegts",
        "live_from_start",
        "external_downloader",
        # subtitles
        "writesubtitles",
        "writeautomaticsub",
        "allsubtitles",
        "subtitleslangs",
        "subtitlesformat",
        # choice of videos
        "allowed_extractors",
        "force_generic_extractor",
        "default_search",
        "matchtitle",
        "rejecttitle",
        "min_views",
        "max_views",
        "playlist_items",
        "playliststart",
        "playlistend",
        "playlistreverse",
        "playlistrandom",
        "lazy_playlist",
        "skip_playlist_after_errors",
        # reading sites
        "extractor_args",
        "js_runtimes",
        "compat_opts",
        "encoding",
        "cachedir",
    )
)

_PROGRAMS = "it can start programs"
_FILES = "it reads or writes other files"
_PRINTS = "it prints, but standard output is for results only"
_NO_USE = "it has no effect here"
_OURS = "is set by Clipmill itself"
_SECTIONS = "is set by `sections`"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "postprocessors",
            "postprocessor_args",
            "external_downloader_args",
            "netrc_cmd",
            "ffmpeg_location",
            "bidi_workaround",
        ),
        _PROGRAMS,
    ),
    "remote_components": "it runs code from the network; install the package yt-dlp-ejs instead",
    "enable_file_urls": "it lets a site read files of this machine",
    **dict.fromkeys(
        (
            "print_to_file",
            "write_pages",
            "load_pages",
            "writedescription",
            "writeinfojson",
            "writethumbnail",
            "write_all_thumbnails",
            "writelink",
            "writeurllink",
            "writewebloclink",
            "writedesktoplink",
            "allow_playlist_files",
            "keepvideo",
            "keep_fragments",
            "force_write_download_archive",
        ),
        _FILES,
    ),
    **dict.fromkeys(
        (
            "verbose",
            "logtostderr",
            "consoletitle",
            "debug_printtraffic",
            "dump_intermediate_pages",
            "forceprint",
            "forcejson",
            "dump_single_json",
            "forceurl",
            "forcetitle",
            "forceid",
            "forcethumbnail",
            "forcedescription",
            "forcefilename",
            "forceformat",
            "forceduration",
            "listformats",
            "listformats_table",
            "list_thumbnails",
            "listsubtitles",
            "progress_template",
            "progress_with_newline",
            "progress_delta",
            "warn_when_outdated",
        ),
        _PRINTS,
    ),
    **dict.fromkeys(
        (
            "autonumber_size",
            "autonumber_start",
            "break_on_existing",
            "break_on_reject",
            "break_per_url",
            "clean_infojson",
            "daterange",
            "final_ext",
            "getcomments",
            "mark_watched",
            "max_downloads",
            "no_overwrites",
            "outtmpl_na_placeholder",
            "overwrites",
            "restrictfilenames",
            "retry_sleep_functions",
            "test",
            "trim_file_name",
            "updatetime",
            "useid",
            "wait_for_video",
            "windowsfilenames",
        ),
        _NO_USE,
    ),
    **dict.fromkeys(
        (
            "outtmpl",
            "paths",
            "logger",
            "match_filter",
            "quiet",
            "no_warnings",
            "noprogress",
            "progress_hooks",
            "postprocessor_hooks",
            "post_hooks",
            "simulate",
            "skip_download",
            "extract_flat",
            "ignoreerrors",
            "noplaylist",
            "download_archive",
            "color",
            "no_color",
        ),
        _OURS,
    ),
    **dict.fromkeys(("download_ranges", "force_keyframes_at_cuts"), _SECTIONS),
}
"""Why a recipe can't set an option."""

_DOWNLOADERS = ("native", "ffmpeg", "aria2c", "axel", "curl", "httpie", "wget")
_RUNTIMES = ("deno", "node", "bun", "quickjs")
# `youtube-ejs` loads scripts from a configurable place, and token helpers (`youtubepot-…`) may be
# programs; those here are used over the network or start nothing.
_HELPERS = ("youtubepot-webpo", "youtubepot-bgutilhttp")


def check_options(options: Mapping[str, Any]) -> None:
    """ValueError if a recipe can't set an option, or yt-dlp has no such option."""
    for name, value in options.items():
        if name not in ALLOWED and name in REFUSED:
            why = REFUSED[name]
            raise ValueError(
                f"the yt-dlp option {name!r} {why}"
                if why in (_OURS, _SECTIONS)
                else f"the yt-dlp option {name!r} can't be set in a recipe: {why}"
            )
        known = known_options()
        if name not in known:
            near = nearest(name.replace("-", "_"), known & ALLOWED)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"yt-dlp has no option {name!r}{hint} (names as in its Python API)")
        if name not in ALLOWED:
            raise ValueError(
                f"the yt-dlp option {name!r} can't be set in a recipe: its effects are not known"
            )
        if value is not None and (check := _CHECKS.get(name)) is not None:
            check(value)


def _is_known_downloader(value: Any) -> None:
    """Programs that yt-dlp knows, by name: a path could be any program."""
    names = value.values() if isinstance(value, Mapping) else [value]
    for name in names:
        if name not in _DOWNLOADERS:
            raise ValueError(
                f"external_downloader: {name!r} is not one of "
                f"{', '.join(_DOWNLOADERS)}; give a name, and the program of that "
                "name on PATH is started"
            )


def _is_known_runtime(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError("js_runtimes: expected a mapping such as {node: {}}")
    for name, settings in value.items():
        if name not in _RUNTIMES:
            raise ValueError(f"js_runtimes: {name!r} is not one of {', '.join(_RUNTIMES)}")
        if settings:
            raise ValueError(
                f"js_runtimes.{name}: a recipe can't choose the program; write "
                f"{{{name}: {{}}}}, and the program of that name on PATH is started"
            )


def _is_for_extractors(value: Any) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(of_one, Mapping) for of_one in value.values()
    ):
        raise ValueError(
            "extractor_args: expected a mapping such as {youtube: {player_client: [tv]}}"
        )
    for name in value:
        if not re.fullmatch(r"\w+", str(name)) and str(name).lower() not in _HELPERS:
            raise ValueError(
                f"extractor_args.{name}: it can start programs or load code from the "
                "network, so it can't be set in a recipe"
            )


def _is_off(value: Any) -> None:
    if value is not False:
        raise ValueError(
            "cachedir: a recipe can only set it to false: another folder would be written to"
        )


def _is_path(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError("cookiefile: expected a path")


def _is_browser(value: Any) -> None:
    parts = [value] if isinstance(value, str) else value
    if (
        not isinstance(parts, list | tuple)
        or not parts
        or not all(part is None or isinstance(part, str) for part in parts)
    ):
        raise ValueError(
            "cookiesfrombrowser: expected a browser's name, or a list of it, the "
            "profile, the keyring and the container"
        )


def _is_target(value: Any) -> None:
    from yt_dlp.networking.impersonate import ImpersonateTarget

    try:
        ImpersonateTarget.from_str(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"impersonate: {error}; write for example chrome or chrome-116:windows-10"
        ) from error


_CHECKS: dict[str, Callable[[Any], None]] = {
    "external_downloader": _is_known_downloader,
    "js_runtimes": _is_known_runtime,
    "extractor_args": _is_for_extractors,
    "cachedir": _is_off,
    "cookiefile": _is_path,
    "cookiesfrombrowser": _is_browser,
    "impersonate": _is_target,
    "proxy": check_yt_dlp_proxy,
    "geo_verification_proxy": check_yt_dlp_proxy,
}


@functools.cache
def known_options() -> frozenset[str]:
    """The options of the installed yt-dlp."""
    import yt_dlp

    documented = re.findall(r"^ {4}([a-z][a-z0-9_]+):", yt_dlp.YoutubeDL.__doc__ or "", re.M)
    downloader = re.findall(
        r"^ {4}([a-z][a-z0-9_]+):", yt_dlp.downloader.common.FileDownloader.__doc__ or "", re.M
    )
    found = (
        frozenset(yt_dlp.parse_options([]).ydl_opts)
        | {*documented, *downloader}
        | {"http_headers", "extractor_retries", "socket_timeout", "proxy", "cookiefile"}
    )
    return frozenset(name for name in found if not name.startswith("_"))


def given_options(options: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """A recipe's options, in the form that yt-dlp takes; `scratch` is a folder for this call
    alone.

    UsageError if a file that an option names can't be read.
    """
    given = dict(options)
    if given.get("cookiefile") is not None:
        given["cookiefile"] = copied_cookies(Path(given["cookiefile"]).expanduser(), scratch)
    if isinstance(given.get("cookiesfrombrowser"), str | list):
        browser = given["cookiesfrombrowser"]
        given["cookiesfrombrowser"] = (browser,) if isinstance(browser, str) else tuple(browser)
    if given.get("impersonate") is not None:
        from yt_dlp.networking.impersonate import ImpersonateTarget

        given["impersonate"] = ImpersonateTarget.from_str(given["impersonate"])
    return given


def copied_cookies(path: Path, scratch: Path) -> str:
    """A copy of a cookie file: yt-dlp writes cookies back, and creates a missing file.

    Threads couldn't share one such file either.
    """
    own = scratch / "cookies.txt"
    try:
        shutil.copyfile(path, own)
    except OSError as error:
        raise UsageError(f"cannot read the cookies in {path}: {error.strerror}") from error
    return str(own)

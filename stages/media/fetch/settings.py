"""The settings of `download_videos`: what to download, and how politely."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import RowRejected
from clipmill.stages.media.fetch.proxies import check_proxy
from clipmill.stages.protocol import resource
from clipmill.stages.reading_stage import ReadingStage
from clipmill.stages.references import DataFile


class DownloadSettings(ReadingStage):
    """Rules for videos, choice of renditions, subtitles and sound, and limits for requests."""

    min_duration_seconds: float | None = Field(
        10.0, ge=0, description="shorter videos are rejected; null turns the rule off"
    )
    max_duration_seconds: float | None = Field(
        1800.0, gt=0, description="longer videos are rejected; null turns the rule off"
    )
    min_height: int | None = Field(
        360,
        ge=1,
        description="videos whose shorter displayed side has fewer pixels are "
        "rejected; null turns the rule off",
    )
    max_height: int | None = Field(
        720,
        ge=1,
        description="if a site offers several renditions, the best one whose "
        "shorter side has at most this many pixels is taken, otherwise the smallest; a local or "
        "directly linked file stays as it is; null takes the best available",
    )
    format: str | None = Field(
        None,
        description="yt-dlp's format selection instead of max_height's, e.g. `b[ext=mp4]`; "
        "it also decides whether sound is requested",
    )
    sound: Literal["wanted", "required", "none"] = Field(
        "wanted",
        description="for videos whose picture and sound are separate files: `wanted` "
        "keeps the video without its sound if that can't be fetched, and `retry` requests only the "
        "sound; `required` fails the video; `none` requests no such sound, unless `format` does",
    )
    subtitle_languages: list[str] = Field(
        ["own", "en", "en-.*"],
        description="languages of subtitles: patterns that must match the "
        "whole code, and `own` for the language spoken in the video; [] for none",
    )
    user_subtitles: bool = Field(True, description="fetch human-written subtitles")
    automatic_subtitles: bool = Field(
        True, description="fetch the platform's automatic subtitles, in the language spoken"
    )
    translated_subtitles: bool = Field(
        False,
        description="also fetch the platform's machine translations (`en-es` …) into the "
        "requested languages",
    )
    sections: bool = Field(
        False,
        description="for a platform's video with given spans, fetch only the part that "
        "contains them, if its times are certain; otherwise the whole video",
    )
    section_padding_seconds: float = Field(
        2.0,
        ge=0,
        description="seconds to fetch before and after the spans of a section; it "
        "always begins at the key frame before",
    )
    copy_local_files: bool = Field(
        False, description="copy local files into the dataset instead of referencing them"
    )
    yt_dlp: dict[str, Any] = Field(
        {},
        description="other options of yt-dlp's Python API, limited to those that a recipe may "
        "set (docs/sources.md)",
    )

    have: list[Path] = resource(
        [],
        description="folders with videos that are already on disk: a platform's video whose id "
        "a file's name gives (docs/sources.md) is referenced there and not requested; a file that "
        "is broken, too small for a rule or shorter than the given spans is not used",
    )
    cookies_file: DataFile | None = resource(
        None, description="cookies in Netscape format, for sites that require a login"
    )
    proxy: str | None = resource(None, description="URL of a proxy, e.g. `socks5://host:1080`")
    user_agent: str | None = resource(
        None, description="User-Agent header; by default each library's own"
    )
    private_addresses: Literal["allow", "refuse"] = resource(
        "allow",
        description="whether URLs may lead to addresses of this machine, its network or "
        "its cloud's metadata; `clipmill submit` sets `refuse` if the recipe sets nothing. "
        "Behind a proxy, the proxy connects, and this can't be checked",
    )
    sleep_seconds: float = resource(
        0.0,
        ge=0,
        description="minimum time between two requests to the same host, across all "
        "workers of the dataset",
    )
    host_problems: int | None = resource(
        10,
        ge=1,
        description="temporary problems or bot checks of a host in a row, across all "
        "workers, after which it is left alone for a while; null never leaves a host alone",
    )
    host_pause_seconds: float = resource(
        60.0,
        gt=0,
        description="how long such a host is left alone before one request tries it "
        "again; a row waits at most max_backoff_seconds for this",
    )
    host_gone_seconds: float | None = resource(
        1800.0,
        gt=0,
        description="once a host has given no good answer for this long since it was "
        "first left alone, rows no longer wait for it: they fail at once, except for one that "
        "tries it every host_pause_seconds; null makes each row wait",
    )
    max_bytes: int | None = resource(
        20_000_000_000, ge=1, description="largest file; more is a failure. null for no limit"
    )
    min_bytes_per_second: int | None = resource(
        1000,
        ge=1,
        description="a download that is slower than this over min_speed_seconds is "
        "aborted and counts as a temporary problem; a rate_limit_bytes_per_second below twice "
        "this value lowers it to half of that limit. null for no limit",
    )
    min_speed_seconds: float = resource(
        60.0, gt=0, description="time over which min_bytes_per_second is measured"
    )
    max_download_seconds: float | None = resource(
        6 * 3600.0,
        gt=0,
        description="maximum time for one video over all attempts, without "
        "pauses; null for no limit",
    )
    rate_limit_bytes_per_second: int | None = resource(
        None, ge=1, description="maximum bytes per second of one download"
    )
    retries: int = resource(5, ge=0, description="retries after a temporary problem")
    backoff_seconds: float = resource(
        2.0, ge=0, description="pause before the first retry; it doubles each time"
    )
    max_backoff_seconds: float = resource(
        120.0,
        ge=0,
        description="longest pause; a host that asks for more is not contacted "
        "until that time is over, and its rows fail",
    )
    timeout_seconds: float = resource(
        30.0, gt=0, description="longest silence of a server before it counts as a problem"
    )
    concurrency: int = resource(4, ge=1, description="parallel downloads in one worker")
    batch_rows: int = resource(16, ge=1, description="rows passed to the stage at a time")
    cpus: float = resource(0.5, gt=0, description="CPUs per worker")

    @field_validator("yt_dlp")
    @classmethod
    def _known_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            from clipmill.stages.media.fetch.ytdlp_options import check_options

            check_options(value)
        return value

    @field_validator("have", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value

    @field_validator("proxy")
    @classmethod
    def _leads_to_a_proxy(cls, value: str | None) -> str | None:
        if value is not None:
            check_proxy(value)
        return value

    @field_validator("user_agent")
    @classmethod
    def _can_be_sent(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("a header may contain only printable ASCII characters")
        return value

    @model_validator(mode="after")
    def _rules_leave_something(self) -> DownloadSettings:
        for least, most in (
            ("min_duration_seconds", "max_duration_seconds"),
            ("min_height", "max_height"),
        ):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least} ({low}) is above {most} ({high}): nothing would be kept")
        return self

    @model_validator(mode="after")
    def _addresses_can_be_checked(self) -> DownloadSettings:
        if self.private_addresses == "refuse" and self.yt_dlp.get("external_downloader"):
            raise ValueError(
                "yt_dlp.external_downloader makes its own connections and can't be "
                "kept from private addresses: remove it, or set "
                "private_addresses=allow"
            )
        return self

    @model_validator(mode="after")
    def _sections_go_with_the_rest(self) -> DownloadSettings:
        if self.sections:
            from clipmill.stages.media.fetch.sections import RESERVED

            for name in RESERVED & set(self.yt_dlp):
                raise ValueError(f"the yt-dlp option {name!r} is set by `sections`")
            if (self.proxy or "").lower().startswith("socks"):
                raise ValueError(
                    "ffmpeg, which fetches sections, doesn't support SOCKS proxies; "
                    "use an HTTP proxy, or turn `sections` off"
                )
            if self.private_addresses == "refuse":
                raise ValueError(
                    "ffmpeg, which fetches sections, can't be kept from private "
                    "addresses; turn `sections` off, or set "
                    "private_addresses=allow if you trust the URLs"
                )
        return self

    def judge(self, duration_seconds: float | None, short_side: int | None) -> None:
        """Raises RowRejected if a rule rejects the video; a value of None is not judged."""
        if duration_seconds is not None:
            low, high = self.min_duration_seconds, self.max_duration_seconds
            if low is not None and duration_seconds < low:
                raise RowRejected(
                    "download_videos.min_duration_seconds", f"{duration_seconds:.2f} < {low:g}"
                )
            if high is not None and duration_seconds > high:
                raise RowRejected(
                    "download_videos.max_duration_seconds", f"{duration_seconds:.2f} > {high:g}"
                )
        if short_side is not None and self.min_height is not None and short_side < self.min_height:
            raise RowRejected("download_videos.min_height", f"{short_side} < {self.min_height}")

"""Obtains one source's file: by reference, by HTTP, or by yt-dlp."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed, RowRejected
from clipmill.schemas.ids import content_video_id, safe_id
from clipmill.schemas.retries import Backoff
from clipmill.stages.media.fetch.attempts import NotAMediaFile
from clipmill.stages.media.fetch.cookies import cookie_jar
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.media.fetch.exclusions import RULE as EXCLUDED_RULE
from clipmill.stages.media.fetch.exclusions import Exclusions, names_of
from clipmill.stages.media.fetch.extractors import video_id_of
from clipmill.stages.media.fetch.files_on_disk import FilesOnDisk, FoundFile, check_folders, covers
from clipmill.stages.media.fetch.guards import hosts_of, limits_of
from clipmill.stages.media.fetch.media_store import (
    Media,
    MediaStore,
    PartOfVideo,
    origin_of,
    sha256_of,
)
from clipmill.stages.media.fetch.optional_parts import Parts, failure_of
from clipmill.stages.media.fetch.sections import Section, discard, widest
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.media.fetch.turns import host_of
from clipmill.stages.media.fetch.ytdlp_calls import YtDlp
from clipmill.stages.media.fetch.ytdlp_sound import KIND as SOUND
from clipmill.stages.media.fetch.ytdlp_subtitles import OPTIONS
from clipmill.stages.media.isolation.isolated import end_spare_fetchers, run_isolated
from clipmill.stages.media.isolation.progress import LargeFile
from clipmill.stages.media.read.probe import Probe, probe
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES
from clipmill.stages.references import file_sha256

if TYPE_CHECKING:
    import httpx

    from clipmill.stages.media.fetch.ytdlp import Asked, Page, Video

# The former default of `subtitle_languages`.
_FORMER_LANGUAGES = ["en", "en-.*", ".*-orig"]

_COPIED_BYTES = 1 << 20


class Downloader:
    """What the threads of one worker share: connections, and request spacing per host."""

    def __init__(self, settings: DownloadSettings, store: MediaStore) -> None:
        self._settings = settings
        self._store = store
        self._hosts = hosts_of(settings, store.folder.parent)
        self._limits = limits_of(settings, settings.proxy)
        self._patience = Backoff(
            settings.retries, settings.backoff_seconds, settings.max_backoff_seconds
        )
        self._excluded = Exclusions(store.folder.parent)
        self._parts = Parts(settings, store, self._hosts, self._asked, self._yt_dlp)
        self._pages: dict[str, Page] = {}
        check_folders(settings.have)  # on this machine, too
        self._on_disk = FilesOnDisk(settings.have)
        self._cookies = (
            local_file(settings.cookies_file, setting="download_videos.cookies_file")
            if settings.cookies_file
            else None
        )
        self._jar = cookie_jar(self._cookies)
        self._opening = threading.Lock()
        self._client: httpx.Client | None = None

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
        end_spare_fetchers()

    def _opened(self) -> httpx.Client:
        """The client; its libraries are not imported where all files are on disk."""
        from clipmill.stages.media.fetch.http_client import open_client

        with self._opening:
            if self._client is None:
                agent, proxy = self._settings.user_agent, self._settings.proxy
                self._client = open_client(
                    self._hosts,
                    allowed=self._limits.allowed,
                    cookies=self._jar,
                    proxy=proxy,
                    headers={"User-Agent": agent} if agent else {},
                    timeout=self._settings.timeout_seconds,
                )
            return self._client

    def bring(self, row: dict[str, Any]) -> Media:
        """The source's complete, checked file; raises RowRejected or RowFailed."""
        if row["path"] is not None:
            return self._local(row, Path(row["path"]))
        try:
            return self._remote(row, row["url"])
        except OSError as error:
            # Network errors have been converted by now.
            raise _failing_disk(f"{self._store.folder} cannot be written", error) from error

    def _remote(self, row: dict[str, Any], url: str) -> Media:
        self._hosts.begin_row()
        host_of(url)
        parts = urlsplit(url)
        direct = PurePosixPath(parts.path).suffix.lower() in MEDIA_SUFFIXES
        origin, *former = self._yt_dlp_origins(row, url)
        part = self._part(row, url)
        is_of_page = self._store.found(row["source_key"], origin, *former, part=part) is not None
        there = self._on_disk.find(row["extractor"], row.get("platform_id"))
        if there is not None and not is_of_page:
            self._check_known(row, row["extractor"], row["platform_id"])
            try:
                return self._had(row, there)
            except (RowFailed, RowRejected, OSError) as problem:
                # As if the file were not there: another rendition may be what the recipe wants.
                media = self._fetch(row, url, origin, former, part)
                notes = {**media.notes, "have_refused": f"{there.path}: {problem}"}
                return dataclasses.replace(media, notes=notes)
        if row["extractor"] is None and parts.scheme in ("http", "https") and not is_of_page:
            with contextlib.suppress(NotAMediaFile):
                return self._reuse_or(
                    row,
                    origin_of("http", url),
                    lambda: self._by_http(row, url, page_is_bad_media=direct),
                )
        return self._fetch(row, url, origin, former, part)

    def _fetch(
        self,
        row: dict[str, Any],
        url: str,
        origin: str,
        former: Sequence[str],
        part: PartOfVideo | None,
    ) -> Media:
        media = self._reuse_or(row, origin, lambda: self._by_yt_dlp(row, url, origin), former, part)
        return self._parts.complete(row, media, self._pages.pop(row["source_key"], None))

    def _had(self, row: dict[str, Any], there: FoundFile) -> Media:
        """A published video that is on disk already; nothing is requested for it."""
        known = {"extractor": row["extractor"], "platform_id": row["platform_id"]}
        notes = {"have_matched_by": there.matched_by}
        if there.others:
            notes["have_not_used"] = ", ".join(map(str, there.others))
        if self._settings.copy_local_files:
            status = there.path.stat()
            origin = origin_of("copy", str(there.path), status.st_size, status.st_mtime_ns)
            bring = functools.partial(self._copy, row, there.path, origin, notes=notes, **known)
            media = self._reuse_or(row, origin, bring)
        else:
            media = self._judged(row, self._referenced(there.path, notes=notes, **known))
        if not covers(row["spans"], media.duration_seconds):
            raise RowFailed(
                "bad_media",
                f"it lasts {media.duration_seconds:.1f} s and ends before the given spans do",
            )
        return media

    def _referenced(self, path: Path, **known: Any) -> Media:
        return Media(
            origin="",
            video_id="",
            sha256=file_sha256(path),
            size_bytes=path.stat().st_size,
            probe=self._probe(path),
            referenced=str(path),
            decoded_frames=1,
            **known,
        )

    def _reuse_or(
        self,
        row: dict[str, Any],
        origin: str,
        bring: Callable[[], Media],
        former: Sequence[str] = (),
        part: PartOfVideo | None = None,
    ) -> Media:
        """The file that an earlier run fetched from the same origin, otherwise the result of
        `bring`."""
        key = row["source_key"]
        known = self._store.found(key, origin, *former, part=part)
        if known is not None:
            self._check_known(row, known.extractor, known.platform_id)
            self._settings.judge(known.duration_seconds, known.probe.short_side)
            self._store.check_claim(key, known.video_id)
            if (file := self._store.file_of(key, known)) is not None:
                return self._up_to_date(key, known, file)
        return bring()

    def _up_to_date(self, key: str, known: Media, file: Path) -> Media:
        """What is known about a file, completed with what an older version did not record."""
        if known.probe.clock_starts_at_seconds is not None:
            return known
        known = dataclasses.replace(
            known, probe=dataclasses.replace(self._probe(file), suffix=known.probe.suffix)
        )
        self._store.note(key, known)
        return dataclasses.replace(known, decoded_frames=1)

    def _local(self, row: dict[str, Any], path: Path) -> Media:
        try:
            status = path.stat()
            if not path.is_file():
                raise RowFailed("permanent", f"not a file: {path}")
            if not status.st_size:
                # Files of /proc have this size, too; reading them may fail or never end.
                raise RowFailed("bad_media", f"an empty file: {path}")
            if self._settings.copy_local_files:
                origin = origin_of("copy", str(path), status.st_size, status.st_mtime_ns)
                return self._reuse_or(row, origin, lambda: self._copy(row, path, origin))
            media = self._judged(row, self._referenced(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RowFailed("permanent", f"no such file: {path}") from error
        except PermissionError as error:
            raise RowFailed("permanent", f"not allowed to read {path}") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise RowFailed("permanent", f"not a file: {path}: {error.strerror}") from error
            raise _failing_disk(f"{path} cannot be read", error) from error
        except ValueError as error:
            raise RowFailed("permanent", f"not a path: {path!r}: {error}") from error
        return media

    def _copy(self, row: dict[str, Any], path: Path, origin: str, **known: Any) -> Media:
        with self._store.work_folder(row["source_key"]) as folder:
            file = folder / f"copy{path.suffix}"
            with LargeFile(path) as source, open(file, "wb") as copy:
                shutil.copyfileobj(source, copy, _COPIED_BYTES)
            return self._take_in(row, file, origin=origin, sha256=sha256_of(file), **known)

    def _by_http(self, row: dict[str, Any], url: str, *, page_is_bad_media: bool) -> Media:
        from clipmill.stages.media.fetch.http import fetch

        with self._store.work_folder(row["source_key"], go_on=True) as folder:
            suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
            name = "download" + (suffix if suffix in MEDIA_SUFFIXES else "")
            fetched = fetch(
                self._opened(),
                url,
                folder / name,
                hosts=self._hosts,
                patience=self._patience,
                limits=self._limits,
                rate_limit_bytes_per_second=self._settings.rate_limit_bytes_per_second,
                page_is_bad_media=page_is_bad_media,
            )
            notes = {}
            if self._section(row) is not None:
                notes["section_refused"] = "a directly linked file is taken as a whole"
            return self._take_in(
                row, fetched.path, origin=origin_of("http", url), sha256=fetched.sha256, notes=notes
            )

    def _by_yt_dlp(self, row: dict[str, Any], url: str, origin: str) -> Media:
        from clipmill.stages.media.fetch.ytdlp import download

        with self._store.work_folder(row["source_key"]) as folder:
            asked, yt_dlp = self._asked(row, folder), self._yt_dlp(row, folder)

            def bring(options: Mapping[str, Any]) -> Video:
                what = dataclasses.replace(asked, options=options, section=self._section(row))
                return yt_dlp.attempt(lambda call: download(call, url, folder, what))

            video = bring(asked.options)
            while self._is_too_large(video):
                # For a playlist without sizes, only the file shows which rendition is within
                # max_height.
                discard(folder)
                video = bring(
                    {**asked.options, "format": self._format(f"[tbr<{video.lesser_than}]")}
                )
            file, facts = video.path, None
            missing: dict[str, dict[str, Any]] = {}
            if video.page.sound is not None:
                file, facts, missing = self._with_its_sound(yt_dlp, asked, video)
            media = self._take_in(
                row,
                file,
                facts,
                origin=origin,
                video_origin=self._yt_dlp_origins(row, url, whole=True)[0],
                sha256=sha256_of(file),
                extractor=video.extractor,
                platform_id=video.platform_id,
                metadata=video.metadata,
                notes=video.notes,
                tracks_origin="",
                starts_at_seconds=video.starts_at_seconds,
                video_seconds=video.video_seconds,
                failed_parts=missing,
            )
            self._pages[row["source_key"]] = video.page
            return media

    def _with_its_sound(
        self, yt_dlp: YtDlp, asked: Asked, video: Video
    ) -> tuple[Path, Probe, dict[str, Any]]:
        """Picture and sound in one file, or only the picture, with the sound's failure."""
        sound, folder = video.page.sound, yt_dlp.folder
        assert sound is not None
        picture = {sound.picture_id: video.path}
        missing: dict[str, Any] = {}
        try:
            with self._hosts.only_for(SOUND):
                files = picture | self._parts.fetch_sound(yt_dlp, asked, sound)
            target = folder / "with_sound"
            file = self._parts.put_together(yt_dlp, target, asked, sound, files)
            return file, self._probe(file), missing
        except RowFailed as problem:
            missing = {SOUND: failure_of(problem)}
        discard(folder, but=video.path)  # endless sound may have filled it
        file = self._parts.put_together(yt_dlp, folder / "picture", asked, sound, picture)
        return file, self._probe(file), missing

    def _format(self, bound: str = "") -> str:
        """A format selector for yt-dlp: the best picture within `bound`, and its sound."""
        apart = "" if self._settings.sound == "none" else "+ba"
        return f"bv*{bound}{apart}/b{bound}"

    def _is_too_large(self, video: Video) -> bool:
        """Whether a rendition of unknown size exceeds max_height and smaller ones exist."""
        most = self._settings.max_height
        return (
            video.lesser_than is not None
            and most is not None
            and not self._settings.format
            and self._probe(video.path).short_side > most
        )

    def _asked(self, row: dict[str, Any], folder: Path) -> Asked:
        from clipmill.stages.media.fetch.ytdlp import Asked
        from clipmill.stages.media.fetch.ytdlp_subtitles import OPTIONS, WantedTracks

        settings = self._settings
        return Asked(
            self._yt_dlp_options(folder),
            WantedTracks(
                settings.subtitle_languages,
                settings.user_subtitles,
                settings.automatic_subtitles,
                settings.translated_subtitles,
                row["language"],
                chosen_by_yt_dlp=bool(OPTIONS & set(settings.yt_dlp)),
            ),
            leaves_sound=settings.sound != "required",
        )

    def _yt_dlp(self, row: dict[str, Any], folder: Path) -> YtDlp:
        return YtDlp(
            row["url"],
            folder,
            self._hosts,
            self._patience,
            self._limits,
            {
                "judge": self._settings.judge,
                "check_known": functools.partial(self._check_known, row),
            },
        )

    def _check_known(
        self,
        row: dict[str, Any],
        extractor: str | None,
        platform_id: str | None,
        page: str | None = None,
    ) -> None:
        """Raises RowRejected for an excluded video, or one that another source already has."""
        found = self._excluded.find(names_of(extractor, platform_id, page, row["url"]))
        if found is not None:
            raise RowRejected(EXCLUDED_RULE, f"known id {found}")
        if extractor and platform_id and not row["video_id"]:
            video_id = video_id_of(extractor, platform_id, row["url"])
            self._store.check_claim(row["source_key"], video_id)

    def _section(self, row: dict[str, Any]) -> Section | None:
        """The part of the video to download; None for the whole video."""
        settings = self._settings
        reach = widest(row["spans"]) if settings.sections else None
        if reach is None:
            return None
        return Section(
            *reach,
            settings.section_padding_seconds,
            settings.timeout_seconds,
            is_identified=bool(row["video_id"]),
            reading=settings.limits,
        )

    def _yt_dlp_options(self, folder: Path) -> dict[str, Any]:
        from clipmill.stages.media.fetch.ytdlp import base_options
        from clipmill.stages.media.fetch.ytdlp_options import given_options

        settings = self._settings
        options = base_options(
            folder,
            cookies_file=self._cookies,
            proxy=settings.proxy,
            timeout_seconds=settings.timeout_seconds,
            user_agent=settings.user_agent,
        )
        options |= {
            "format": settings.format or self._format(),
            # `res` is the shorter side: the largest up to this value, otherwise the smallest above
            # it.
            "format_sort": [f"res:{settings.max_height}" if settings.max_height else "res"],
            # Attempts are repeated around yt-dlp, which resumes its partial file.
            "retries": 0,
            "extractor_retries": 0,
            "fragment_retries": settings.retries,
            "skip_unavailable_fragments": False,
            "continuedl": True,
        }
        if settings.rate_limit_bytes_per_second is not None:
            options["ratelimit"] = settings.rate_limit_bytes_per_second
        return options | given_options(settings.yt_dlp, folder)

    def _part(self, row: dict[str, Any], url: str) -> PartOfVideo | None:
        section = self._section(row)
        if section is None:
            return None
        of_video = self._yt_dlp_origins(row, url, whole=True)[0]
        return PartOfVideo(of_video, section.first_seconds, section.last_seconds)

    def _yt_dlp_origins(self, row: dict[str, Any], url: str, *, whole: bool = False) -> list[str]:
        """Identifies the bytes to fetch, and gives the names that earlier releases had for them.

        Those names included the subtitles, which don't change the file.
        """
        settings = self._settings
        section = None if whole else self._section(row)
        asked = [] if section is None else [section.start_seconds, section.end_seconds]
        media = {name: value for name, value in settings.yt_dlp.items() if name not in OPTIONS}
        formerly = [settings.subtitle_languages, _FORMER_LANGUAGES]
        if settings.sound == "none" and not (settings.format or "format" in media):
            return [origin_of("yt_dlp", url, settings.max_height, "no sound", media, *asked)]
        return [
            origin_of("yt_dlp", url, settings.max_height, settings.format, media, *asked),
            *(
                origin_of(
                    "yt_dlp",
                    url,
                    settings.max_height,
                    settings.format,
                    languages,
                    settings.user_subtitles,
                    settings.automatic_subtitles,
                    settings.yt_dlp,
                    *asked,
                )
                for languages in formerly
            ),
        ]

    def _take_in(
        self,
        row: dict[str, Any],
        file: Path,
        facts: Probe | None = None,
        *,
        sha256: str,
        **known: Any,
    ) -> Media:
        """Checks a complete file and moves it to the folder of complete files."""
        key = row["source_key"]
        media = Media(
            video_id="",
            sha256=sha256,
            size_bytes=file.stat().st_size,
            probe=facts or self._probe(file),
            downloaded_at=datetime.now(UTC),
            decoded_frames=1,
            **known,
        )
        try:
            media = self._judged(row, media)
        except RowRejected:
            self._store.note(key, _with_id(row, media))
            raise
        self._store.add(key, file, media)
        return media

    def _probe(self, file: Path) -> Probe:
        return run_isolated(probe, file, limits=self._settings.limits)

    def _judged(self, row: dict[str, Any], media: Media) -> Media:
        self._settings.judge(media.duration_seconds, media.probe.short_side)
        return _with_id(row, media)


def _failing_disk(what: str, error: OSError) -> RowFailed:
    """Recognises a full disk by the error's cause; a full disk stops the run."""
    where = f" ({error.filename})" if error.filename else ""
    return RowFailed(
        "transient",
        f"{what}{where}: {error.strerror or error}; check the disk or "
        "share, then retry the failures of kind transient",
    )


def _with_id(row: dict[str, Any], media: Media) -> Media:
    """The same media with its id: the user's, else the platform's, else a hash of the content."""
    if row["video_id"]:
        video_id = safe_id(row["video_id"])
    elif media.extractor and media.platform_id:
        video_id = video_id_of(media.extractor, media.platform_id, row["url"])
    else:
        video_id = content_video_id(media.sha256)
    return dataclasses.replace(media, video_id=video_id)

"""Fetches the optional parts of a video, its subtitles and its sound, independently of each other.

The media is complete by then. A part that can't be fetched is a failure of its own, which `retry`
tries again; refused requests for it pause only requests of the same kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import MAX_MESSAGE_CHARACTERS, RowFailed
from clipmill.stages.media.fetch.host_throttle import Hosts
from clipmill.stages.media.fetch.media_store import Media, MediaStore, origin_of, sha256_of
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.media.fetch.sound_muxing import add_sound
from clipmill.stages.media.fetch.ytdlp_sound import KIND as SOUND
from clipmill.stages.media.fetch.ytdlp_subtitles import KIND as SUBTITLES
from clipmill.stages.media.fetch.ytdlp_subtitles import OPTIONS
from clipmill.stages.media.read.speech import without_overlaps

if TYPE_CHECKING:
    from clipmill.stages.media.fetch.ytdlp import Asked, Page
    from clipmill.stages.media.fetch.ytdlp_sound import SeparateSound
    from clipmill.stages.media.fetch.ytdlp_subtitles import Taken

# A row doesn't wait long for a subtitle track: `retry` requests it again.
_RETRIES_OF_A_TRACK = 1


class Parts:
    """Fetches the missing parts of a video.

    `patiently` retries a function after temporary problems; it takes the URL, the folder that the
    function writes to, the function, and the most retries. `asked` gives the request to a site.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        store: MediaStore,
        hosts: Hosts,
        patiently: Callable[..., Any],
        asked: Callable[[dict[str, Any], Path], Asked],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hosts = hosts
        self._patiently = patiently
        self._asked = asked

    def complete(self, row: dict[str, Any], url: str, media: Media, page: Page | None) -> Media:
        """The media with its missing parts, or with the reasons why they are missing.

        `page` is given if the media, and so its sound, was requested just now.
        """
        reader = _Reader(page)
        if page is None and SOUND in media.failed_parts:
            media = self._with_sound(row, url, media, reader)
        return self._with_subtitles(row, url, media, reader)

    def fetch_sound(
        self, url: str, folder: Path, asked: Asked, sound: SeparateSound
    ) -> dict[str, Path]:
        from clipmill.stages.media.fetch.ytdlp_sound import fetch_sound

        files: dict[str, Path] = self._patiently(
            url,
            folder,
            lambda: fetch_sound(
                sound, folder, asked.options, self._hosts, self._settings.backoff_seconds
            ),
        )
        return files

    def put_together(
        self, url: str, target: Path, asked: Asked, sound: SeparateSound, files: dict[str, Path]
    ) -> Path:
        from clipmill.stages.media.fetch.ytdlp_sound import put_together

        # Fetches nothing, but is limited in size and time like every part of a download.
        path: Path = self._patiently(
            url,
            target.parent,
            lambda: put_together(sound, files, target, asked.options, self._hosts),
            0,
        )
        return path

    def _with_sound(self, row: dict[str, Any], url: str, media: Media, reader: _Reader) -> Media:
        """The media with its sound in the same file; the pictures don't change."""
        key = row["source_key"]
        is_required = self._settings.sound == "required"
        file = self._store.file_of(key, media)
        assert file is not None
        with self._store.work_folder(key) as folder:
            try:
                with contextlib.nullcontext() if is_required else self._hosts.only_for(SOUND):
                    asked = self._asked(row, folder)
                    sound = self._read(reader, url, folder, asked).sound
                    if sound is None:
                        raise RowFailed(
                            "permanent", "the site no longer offers the sound as a separate file"
                        )
                    files = self.fetch_sound(url, folder, asked, sound)
                heard = self.put_together(url, folder / "heard", asked, sound, files)
                whole = folder / f"whole{media.probe.suffix}"
                facts = add_sound(
                    file,
                    media.probe,
                    heard,
                    whole,
                    limits=self._settings.limits,
                    bounded=lambda write: self._patiently(url, folder, write, 0),
                )
            except RowFailed as problem:
                if is_required:
                    raise
                media = dataclasses.replace(
                    media,
                    failed_parts={
                        **media.failed_parts,
                        SOUND: failure_of(problem, media.failed_parts[SOUND]),
                    },
                )
                self._store.note(key, media)
                return media
            media = dataclasses.replace(
                media,
                sha256=sha256_of(whole),
                size_bytes=whole.stat().st_size,
                former=[*media.former, media.sha256],
                probe=facts,
                failed_parts=_without(media.failed_parts, SOUND),
            )
            self._store.add(key, whole, media)
        return media

    def _with_subtitles(
        self, row: dict[str, Any], url: str, media: Media, reader: _Reader
    ) -> Media:
        """The media with its missing subtitles, or with the reasons why they are missing."""
        origin = self._tracks_origin()
        if media.tracks_origin is None:  # an earlier release took them, all or none
            media = dataclasses.replace(
                media, tracks_origin=origin, subtitles=without_overlaps(media.subtitles)
            )
        if media.tracks_origin == origin and SUBTITLES not in media.failed_parts:
            return media
        if media.tracks_origin != origin:
            media = dataclasses.replace(
                media, tracks=[], subtitles=[], failed_parts=_without(media.failed_parts, SUBTITLES)
            )
        with self._store.work_folder(row["source_key"]) as folder, self._hosts.only_for(SUBTITLES):
            taken = self._take_tracks(row, url, folder, media.tracks, reader)
        parts = _without(media.failed_parts, SUBTITLES)
        notes = {name: text for name, text in media.notes.items() if name != "subtitles_error"}
        if (problem := taken.problem()) is not None:
            parts[SUBTITLES] = failure_of(problem, media.failed_parts.get(SUBTITLES))
        media = dataclasses.replace(
            media,
            tracks=[*media.tracks, *taken.names],
            tracks_origin=origin,
            notes=notes,
            failed_parts=parts,
            subtitles=sorted([*media.subtitles, *taken.lines], key=lambda line: line["language"]),
        )
        self._store.note(row["source_key"], media)
        return media

    def _take_tracks(
        self, row: dict[str, Any], url: str, folder: Path, there: Sequence[str], reader: _Reader
    ) -> Taken:
        from clipmill.stages.media.fetch.ytdlp_subtitles import Taken, fetch_track

        taken = Taken()
        asked = self._asked(row, folder)
        try:
            tracks = self._read(reader, url, folder, asked).tracks
        except RowFailed as problem:
            taken.problems["the page"] = problem
            return taken
        for number, track in enumerate(tracks.found):
            if track.name in there:
                continue
            try:
                taken.lines += self._patiently(
                    url,
                    folder,
                    lambda: fetch_track(
                        track,  # noqa: B023 (called at once)
                        number,  # noqa: B023
                        folder,
                        asked.options,
                        tracks.cookies,
                        self._hosts,
                        self._settings.backoff_seconds,
                    ),
                    _RETRIES_OF_A_TRACK,
                )
                taken.names.append(track.name)
            except RowFailed as problem:
                taken.problems[track.name] = problem
        return taken

    def _read(self, reader: _Reader, url: str, folder: Path, asked: Asked) -> Page:
        from clipmill.stages.media.fetch.ytdlp import read_page

        return reader.read(
            lambda: self._patiently(url, folder, lambda: read_page(url, folder, asked))
        )

    def _tracks_origin(self) -> str:
        settings = self._settings
        chosen = {name: value for name, value in settings.yt_dlp.items() if name in OPTIONS}
        return origin_of(
            "subtitles",
            settings.subtitle_languages,
            settings.user_subtitles,
            settings.automatic_subtitles,
            settings.translated_subtitles,
            chosen,
        )


class _Reader:
    """A video's page, requested when a part first needs it, and only once."""

    def __init__(self, page: Page | None) -> None:
        self._page = page
        self._problem: RowFailed | None = None

    def read(self, ask: Callable[[], Page]) -> Page:
        if self._problem is not None:
            raise self._problem
        if self._page is None:
            try:
                self._page = ask()
            except RowFailed as problem:
                self._problem = problem
                raise
        return self._page


def failure_of(problem: RowFailed, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """A part's failure as it is stored, with one attempt more than the `earlier` one."""
    return {
        "kind": problem.kind,
        "message": problem.message[:MAX_MESSAGE_CHARACTERS],
        "attempts": (earlier or {}).get("attempts", 0) + 1,
        "at": datetime.now(UTC).isoformat(),
    }


def _without(parts: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: said for name, said in parts.items() if name != part}

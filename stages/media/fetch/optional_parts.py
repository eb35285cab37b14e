"""Fetches the optional parts of a video, its subtitles and its sound, independently of each other.

The media is complete by then. A part that can't be fetched is a separate failure, which `retry`
tries again; if it is refused, only requests of the same kind are paused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import MAX_MESSAGE_CHARACTERS, RowFailed
from clipmill.stages.media.fetch.host_throttle import Hosts
from clipmill.stages.media.fetch.media_store import Media, MediaStore, origin_of, sha256_of
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.media.fetch.sound_muxing import add_sound
from clipmill.stages.media.fetch.ytdlp_sound import KIND as SOUND
from clipmill.stages.media.fetch.ytdlp_subtitles import KIND as SUBTITLES
from clipmill.stages.media.fetch.ytdlp_subtitles import OPTIONS
from clipmill.stages.media.read.speech import without_overlaps

if TYPE_CHECKING:
    from clipmill.stages.media.fetch.ytdlp import Asked, Page
    from clipmill.stages.media.fetch.ytdlp_calls import Call, YtDlp
    from clipmill.stages.media.fetch.ytdlp_sound import SeparateSound
    from clipmill.stages.media.fetch.ytdlp_subtitles import Taken, Track

# A row doesn't wait long for a subtitle track: `retry` requests it again.
_RETRIES_OF_A_TRACK = 1


class Parts:
    """Fetches the missing parts of a video.

    `asked` builds the request to a site, and `yt_dlp` the object that makes it, for a row and a
    folder.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        store: MediaStore,
        hosts: Hosts,
        asked: Callable[[dict[str, Any], Path], Asked],
        yt_dlp: Callable[[dict[str, Any], Path], YtDlp],
    ) -> None:
        self._settings = settings
        self._store = store
        self._hosts = hosts
        self._asked = asked
        self._yt_dlp = yt_dlp

    def complete(self, row: dict[str, Any], media: Media, page: Page | None) -> Media:
        """The media with its missing parts, or with the reasons why they are missing.

        `page` is given if the media, and so its sound, was requested just now.
        """
        reader = _Reader(page)
        if page is None and SOUND in media.failed_parts:
            media = self._with_sound(row, media, reader)
        return self._with_subtitles(row, media, reader)

    def fetch_sound(self, yt_dlp: YtDlp, asked: Asked, sound: SeparateSound) -> dict[str, Path]:
        from clipmill.stages.media.fetch.ytdlp_sound import fetch_sound

        def attempt(call: Call) -> dict[str, Path]:
            with self._not_waiting():
                return call(fetch_sound, sound, yt_dlp.folder, asked.options)

        return yt_dlp.attempt(attempt)

    def put_together(
        self,
        yt_dlp: YtDlp,
        target: Path,
        asked: Asked,
        sound: SeparateSound,
        files: dict[str, Path],
    ) -> Path:
        from clipmill.stages.media.fetch.ytdlp_sound import put_together

        # Fetches nothing, but has size and time limits like every part of a download.
        return yt_dlp.call(put_together, sound, files, target, asked.options, most_retries=0)

    @contextlib.contextmanager
    def _not_waiting(self) -> Iterator[None]:
        """Within this context, requests for an optional part fail at once if their host is
        overloaded.

        The host then gets no requests of that kind for as long as it says, otherwise for the first
        pause. `retry` requests the part again.
        """
        hosts = self._hosts
        try:
            yield
        except PassingProblem as problem:
            if not problem.whole_host or hosts.kind is None:
                raise
            hosts.failed(problem)
            if problem.retry_after_seconds is None and problem.host:
                hosts.hold(problem.host, self._settings.backoff_seconds, problem.message)
            raise RowFailed("transient", problem.message) from problem

    def _with_sound(self, row: dict[str, Any], media: Media, reader: _Reader) -> Media:
        """The media with its sound in the same file; the pictures don't change."""
        key = row["source_key"]
        is_required = self._settings.sound == "required"
        file = self._store.file_of(key, media)
        assert file is not None
        with self._store.work_folder(key) as folder:
            yt_dlp = self._yt_dlp(row, folder)
            try:
                with contextlib.nullcontext() if is_required else self._hosts.only_for(SOUND):
                    asked = self._asked(row, folder)
                    sound = self._read(reader, yt_dlp, asked).sound
                    if sound is None:
                        raise RowFailed(
                            "permanent", "the site no longer offers the sound as a separate file"
                        )
                    files = self.fetch_sound(yt_dlp, asked, sound)
                heard = self.put_together(yt_dlp, folder / "heard", asked, sound, files)
                whole = folder / f"whole{media.probe.suffix}"
                facts = add_sound(
                    file, media.probe, heard, whole, limits=self._settings.limits, yt_dlp=yt_dlp
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

    def _with_subtitles(self, row: dict[str, Any], media: Media, reader: _Reader) -> Media:
        """The media with its missing subtitles, or with the reasons why they are missing."""
        origin = self._tracks_origin()
        if media.tracks_origin is None:  # an earlier release fetched all of them or none
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
            taken = self._take_tracks(row, folder, media.tracks, reader)
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
        self, row: dict[str, Any], folder: Path, there: Sequence[str], reader: _Reader
    ) -> Taken:
        from clipmill.stages.media.fetch.ytdlp_subtitles import Taken, fetch_track

        taken = Taken()
        asked, yt_dlp = self._asked(row, folder), self._yt_dlp(row, folder)
        try:
            tracks = self._read(reader, yt_dlp, asked).tracks
        except RowFailed as problem:
            taken.problems["the page"] = problem
            return taken

        def fetch(number: int, track: Track, call: Call) -> list[dict[str, Any]]:
            with self._not_waiting():
                return call(fetch_track, track, number, folder, asked.options, tracks.cookies)

        for number, track in enumerate(tracks.found):
            if track.name in there:
                continue
            try:
                attempt = functools.partial(fetch, number, track)
                taken.lines += yt_dlp.attempt(attempt, _RETRIES_OF_A_TRACK)
                taken.names.append(track.name)
            except RowFailed as problem:
                taken.problems[track.name] = problem
        return taken

    def _read(self, reader: _Reader, yt_dlp: YtDlp, asked: Asked) -> Page:
        from clipmill.stages.media.fetch.ytdlp import read_page

        return reader.read(lambda: yt_dlp.call(read_page, yt_dlp.url, yt_dlp.folder, asked))

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
    """A video's page, requested only once, when a part first needs it."""

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
    """A part's failure as it is stored, with one more attempt than the `earlier` one."""
    return {
        "kind": problem.kind,
        "message": problem.message[:MAX_MESSAGE_CHARACTERS],
        "attempts": (earlier or {}).get("attempts", 0) + 1,
        "at": datetime.now(UTC).isoformat(),
    }


def _without(parts: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: said for name, said in parts.items() if name != part}

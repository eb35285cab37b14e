"""Expands playlists, channels and searches to their videos; answers are kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.ingest.platforms import identify
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.errors import RowFailed
from clipmill.schemas.folders import LISTS
from clipmill.schemas.retries import Backoff

if TYPE_CHECKING:
    from clipmill.stages.download_videos import DownloadVideos
    from clipmill.stages.media.fetch.host_throttle import Hosts

# Stops sites that return entries without end: no known list is longer.
MAX_ENTRIES = 200_000
# A channel lists its tabs, and a tab its videos.
_MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class PlaylistEntry:
    """One video of a list."""

    url: str
    title: str | None = None


def read_list_entries(path: Path) -> list[PlaylistEntry]:
    """The stored contents of a list; DamagedFile if the note is invalid."""
    value = read_json(path)
    with reading(path):
        entries = [PlaylistEntry(**entry) for entry in value["entries"]]
        if not all(isinstance(entry.url, str) for entry in entries):
            raise TypeError("not all of its entries have a URL")
    return entries


class Expander:
    """Requests lists through yt-dlp; answers are stored with the dataset's sources.

    Limits on time and speed, private addresses and request spacing are those of `downloads`, or
    its defaults if it is None.
    """

    def __init__(self, dataset: Path, downloads: DownloadVideos | None = None) -> None:
        self._dataset = dataset
        self._folder = dataset / LISTS
        self._downloads = downloads

    @functools.cached_property
    def _settings(self) -> DownloadVideos:
        from clipmill.stages.download_videos import DownloadVideos

        return self._downloads or DownloadVideos()

    @functools.cached_property
    def _hosts(self) -> Hosts:
        from clipmill.stages.media.fetch.guards import hosts_of

        return hosts_of(self._settings, self._dataset)

    def expand(self, url: str, spec: SourceSpec, results: int | None) -> list[PlaylistEntry]:
        """The videos of a list in its order, or the one video that the URL is.

        Raises RowFailed if the list can't be fetched; then nothing is stored.
        """
        asked = json.dumps([url, results, spec.yt_dlp], sort_keys=True, default=str)
        path = self._folder / (hashlib.sha256(asked.encode()).hexdigest()[:20] + ".json")
        if path.is_file() and not spec.refresh:
            # If the note is damaged, the list is requested again: known sources are recognised by
            # key.
            with contextlib.suppress(DamagedFile):
                return read_list_entries(path)
        entries = list(
            itertools.islice(self._walk(url, spec, results, 1), results or MAX_ENTRIES + 1)
        )
        if results is None and len(entries) > MAX_ENTRIES:
            raise RowFailed(
                "permanent", f"more than {MAX_ENTRIES:,} entries; limit them with `results`"
            )
        write_json(
            path,
            {
                "url": url,
                "results": results,
                "entries": [{"url": e.url, "title": e.title} for e in entries],
            },
        )
        return entries

    def _walk(
        self, url: str, spec: SourceSpec, results: int | None, depth: int
    ) -> Iterator[PlaylistEntry]:
        from clipmill.stages.media.fetch.guards import limits_of
        from clipmill.stages.media.fetch.ytdlp import base_options, expand_list
        from clipmill.stages.media.fetch.ytdlp_calls import YtDlp
        from clipmill.stages.media.fetch.ytdlp_options import given_options

        settings = self._settings
        self._hosts.begin_row()
        with tempfile.TemporaryDirectory() as scratch:
            options = base_options(Path(scratch), timeout_seconds=settings.timeout_seconds)
            options |= given_options(spec.yt_dlp, Path(scratch))
            yt_dlp = YtDlp(
                url,
                Path(scratch),
                self._hosts,
                Backoff(spec.retries, settings.backoff_seconds, settings.max_backoff_seconds),
                limits_of(settings, spec.yt_dlp.get("proxy")),
            )
            found = yt_dlp.call(expand_list, url, options, results or MAX_ENTRIES + 1)
        if len(found) == 1 and found[0].get("webpage_url") == url:
            yield PlaylistEntry(url, found[0].get("title"))  # it was one video, not a list
            return
        for entry in found:
            link = _link(entry, url)
            if self._is_list(link) and link != url and depth < _MAX_DEPTH:
                yield from self._walk(link, spec, results, depth + 1)
            else:
                yield PlaylistEntry(link, entry.get("title"))

    def _is_list(self, link: str) -> bool:
        try:
            return identify(link).is_list
        except ValueError:
            return False


def _link(entry: dict[str, Any], listed_at: str) -> str:
    """What to download an entry from: its page, or its file if its page is the list's."""
    page, link = entry.get("webpage_url"), entry.get("url")
    if entry.get("_type") in ("url", "url_transparent") or (page == listed_at and link):
        return link or page or ""
    return page or link or ""

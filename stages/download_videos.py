"""Downloads every source's video into the dataset's folder, or records why not.

A file appears under its name in `media/` only when it is complete. Findings about it are noted
next to it, so that a run that was killed, or one with other rules, downloads nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any, ClassVar

import pyarrow as pa

from clipmill.schemas.errors import ClipmillError, ErrorKind, RowFailed, RowRejected
from clipmill.schemas.storage import full_storage
from clipmill.schemas.tables import VIDEOS
from clipmill.stages.media.fetch.downloads import Downloader
from clipmill.stages.media.fetch.media_store import Media, MediaStore
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.protocol import Rows, Transform, Workspace


class DownloadVideos(DownloadSettings):
    """Downloads, checks and identifies videos; local files are referenced in place.

    The four rules apply to every source. Height means the shorter side as displayed, so a
    portrait video counts by its width.
    """

    name: ClassVar[str] = "download_videos"
    # 2: a header's claims alone no longer count as truncation; lines of automatic subtitles end;
    # the container's start time is second 0 of the video.
    version: ClassVar[int] = 2
    key: ClassVar[str] = "source_key"
    reads: ClassVar[tuple[str, ...]] = tuple(
        f"sources.{column}"
        for column in (
            "url",
            "path",
            "extractor",
            "video_id",
            "spans",
            "title",
            "category",
            "language",
            "query",
            "caption",
            "extra",
            "captions?",
        )
    )
    writes: ClassVar[pa.Schema] = VIDEOS
    error_kind: ClassVar[ErrorKind] = "transient"

    @contextlib.contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        store = MediaStore(workspace.dataset, self.identity())
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="download")
        with Downloader(self, store) as downloader:
            is_waited_for = True

            def transform(table: pa.Table) -> pa.Table:
                nonlocal is_waited_for
                try:
                    return self._transform(table, pool, downloader, store, workspace)
                except BaseException:
                    # The run ends (Ctrl-C, a full disk); other downloads may take hours.
                    is_waited_for = False
                    raise

            try:
                yield transform
            finally:
                pool.shutdown(wait=is_waited_for, cancel_futures=True)

    def _transform(
        self,
        table: pa.Table,
        pool: ThreadPoolExecutor,
        downloader: Downloader,
        store: MediaStore,
        workspace: Workspace,
    ) -> pa.Table:
        rows = table.to_pylist()
        running = [pool.submit(downloader.bring, row) for row in rows]
        out = Rows(self)
        try:
            # In source order, so that of two equal files it is always the first that stays.
            for row, future in zip(rows, running, strict=True):
                self._settle(row, future, out, store, workspace)
        finally:
            for future in running:
                future.cancel()
        return out.table()

    def _settle(
        self,
        row: dict[str, Any],
        future: Future[Media],
        out: Rows,
        store: MediaStore,
        workspace: Workspace,
    ) -> None:
        key = row["source_key"]
        try:
            media = future.result()
            workspace.decoded_frames += media.decoded_frames
            path = store.keep(key, row["url"], media)
        except ClipmillError:
            raise
        except Exception as error:
            if (full := full_storage(error, store.folder)) is not None:
                raise full from error  # the next source would fail the same way
            if isinstance(error, RowFailed | RowRejected):
                out.record(key, error)
            else:
                out.fail(key, self.error_kind, f"{type(error).__name__}: {error}")
        else:
            out.keep(key, **_columns(row, media, path))


def _columns(row: dict[str, Any], media: Media, path: str) -> dict[str, Any]:
    """The video's row: what the user gave takes precedence over what the platform says."""
    said = media.metadata
    return {
        "video_id": media.video_id,
        "url": row["url"],
        "extractor": media.extractor,
        "source_id": media.platform_id,
        "title": row["title"] or said.get("title"),
        "description": said.get("description"),
        "uploader": said.get("uploader"),
        "tags": said.get("tags"),
        "license": said.get("license"),
        "language": row["language"] or said.get("language"),
        "category": row["category"] or said.get("category"),
        "query": row["query"],
        "caption_given": row["caption"],
        "duration_seconds": media.duration_seconds,
        "width": media.probe.width,
        "height": media.probe.height,
        "fps": media.probe.fps,
        "codec": media.probe.codec,
        "has_audio": media.probe.has_audio,
        "size_bytes": media.size_bytes,
        "sha256": media.sha256,
        "path": path,
        "downloaded_at": media.downloaded_at,
        "subtitles": [
            {name: line[name] for name in line if name != "words"} for line in media.subtitles
        ],
        "spans": row["spans"],
        "extra": {**dict(row["extra"] or []), **media.notes},
        "starts_at_seconds": media.starts_at_seconds,
        "subtitle_words": [line.get("words") for line in media.subtitles],
        "clock_starts_at_seconds": media.clock_starts_at_seconds,
        "pixel_format": media.probe.pixel_format,
        "color_transfer": media.probe.color_transfer,
        "color_primaries": media.probe.color_primaries,
        "captions_given": row.get("captions"),
        "failed_parts": [
            {"part": part, **failure, "at": datetime.fromisoformat(failure["at"])}
            for part, failure in media.failed_parts.items()
        ],
    }

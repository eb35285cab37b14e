"""Downloads every source's video into the dataset's folder, or records why not.

A file appears under its name in `media/` only when it is complete. Findings about it are noted
next to it, so that a run that was killed, or one with other rules, downloads nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from clipmill.schemas.errors import ClipmillError, ErrorKind, RowFailed, RowRejected
from clipmill.schemas.storage import full_storage
from clipmill.schemas.tables import FAILED_PART, OUTCOME, SPAN, SUBTITLE, TEXT_AT
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.protocol import Rows, Transform, Workspace

if TYPE_CHECKING:
    from clipmill.stages.media.fetch.downloads import Downloader
    from clipmill.stages.media.fetch.media_store import Media, MediaStore

# One row per source. `path` is relative to the dataset for downloaded files and absolute for
# referenced ones. Width and height are as displayed. `clock_starts_at_seconds` is the file's own
# time stamp at second 0 (0 for most MP4s, 1.4 for an MPEG-TS); null in rows of older versions,
# whose second 0 is the file's time 0.
# `starts_at_seconds` is the time in the video at which the file begins: null but for files that
# hold a section of it. `pixel_format`, `color_transfer` and `color_primaries` have FFmpeg's names,
# null where the file doesn't say: HDR10 is `smpte2084`, HLG `arib-std-b67`.
# `subtitle_words` runs parallel to `subtitles`: the words of each line with the times at which they
# are said, where those are known.
# `failed_parts` are failures of what a kept row lacks (`subtitles`, `sound`); `retry` asks for just
# those.
VIDEOS = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("extractor", pa.string()),
        ("source_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("uploader", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("license", pa.string()),
        ("language", pa.string()),
        ("category", pa.string()),
        ("query", pa.string()),
        ("caption_given", pa.string()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("has_audio", pa.bool_()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("path", pa.string()),
        ("downloaded_at", pa.timestamp("us", tz="UTC")),
        ("subtitles", pa.list_(SUBTITLE)),
        ("spans", pa.list_(SPAN)),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("starts_at_seconds", pa.float64()),
        ("subtitle_words", pa.list_(pa.list_(TEXT_AT))),
        ("clock_starts_at_seconds", pa.float64()),
        ("pixel_format", pa.string()),
        ("color_transfer", pa.string()),
        ("color_primaries", pa.string()),
        ("captions_given", pa.list_(pa.string())),
        ("failed_parts", pa.list_(FAILED_PART)),
        *OUTCOME,
    ]
)


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
            "platform_id",
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
    robust: ClassVar[bool] = True

    @contextlib.contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        # Here, because the schema above is read where PyAV is not installed.
        from clipmill.stages.media.fetch.downloads import Downloader
        from clipmill.stages.media.fetch.media_store import MediaStore

        store = MediaStore(workspace.dataset, self.identity())
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="download")
        with Downloader(self, store) as downloader:
            is_waited_for = True

            def transform(table: pa.Table) -> pa.Table:
                nonlocal is_waited_for
                try:
                    return self._transform(table, pool, downloader, store, workspace)
                except BaseException:
                    # The run is ending (Ctrl-C, a full disk), and other downloads may take hours.
                    is_waited_for = False
                    raise

            try:
                yield transform
            except BaseException:
                is_waited_for = False  # as where the transform itself is interrupted
                raise
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
            # In source order, so that of two equal files always the first one is kept.
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

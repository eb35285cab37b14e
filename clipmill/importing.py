"""Imports of published metadata from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clipmill.pipeline.catalog.index_writer import index_problem
from clipmill.pipeline.dataset.locks import dataset_lock, remove_if_empty
from clipmill.pipeline.dataset.run_records import check_place
from clipmill.pipeline.ingest.layouts import INTERNVID, LAYOUTS, hint_of, specs_of
from clipmill.pipeline.ingest.list_import import import_lists
from clipmill.pipeline.ingest.shard_sizes import SHARD_VIDEOS
from clipmill.pipeline.ingest.sources import fixed_shards_note
from clipmill.pipeline.ingest.span_import import ImportReport, import_spans
from clipmill.schemas.errors import UsageError

Files = Sequence[str | os.PathLike[str]]


def import_published(
    dataset: str | os.PathLike[str],
    files: Files,
    format: str,
    *,
    shard_videos: int | None = None,
    limit: int | None = None,
    exclude_ids: str | os.PathLike[str] | None = None,
    wait: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportReport:
    """Adds published rows to a new or existing dataset: videos with spans, captions and scores.

    files: as they were published; pass all files of a publication at once.
    format: internvid, panda-70m, koala-36m, openvid-1m, miradata, spatialvid or howto100m.
    shard_videos: videos per shard, the unit of work, for new shards; 16 if not set.
    limit: takes only this many videos; for internvid, with all their clips.
    exclude_ids: a file of known ids to reject, one per line.
    on_bytes: called with the number of bytes that were read since the last call (internvid).
    """
    paths = [Path(file) for file in files]
    excluded = None if exclude_ids is None else Path(exclude_ids)
    if format != INTERNVID and format not in LAYOUTS:
        raise UsageError(f"format {format!r}; allowed: {', '.join((INTERNVID, *LAYOUTS))}")

    def take(place: Path, shard_videos: int) -> ImportReport:
        if format != INTERNVID:
            specs = specs_of(format, paths)
            return import_lists(
                place, specs, shard_videos=shard_videos, limit=limit, exclude_ids=excluded
            )
        try:
            return import_spans(
                place,
                paths,
                shard_videos=shard_videos,
                limit=limit,
                exclude_ids=excluded,
                report_bytes=on_bytes,
            )
        except UsageError as error:
            hint = next((hint for path in paths if (hint := hint_of(path))), "")
            raise UsageError(f"{error}{hint}") from error

    place = Path(dataset).expanduser().absolute()
    check_place(place)
    is_new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        with dataset_lock(place, "import", wait=wait):
            note = None
            if shard_videos is not None:
                note = fixed_shards_note(place, shard_videos, "--shard-videos", by_hand=True)
            report = take(place, shard_videos or SHARD_VIDEOS)
            report.note = note
            report.index_problem = index_problem(place)
            return report
    except BaseException:
        if is_new:
            remove_if_empty(place)
        raise


def import_internvid(
    dataset: str | os.PathLike[str],
    files: Files,
    *,
    shard_videos: int | None = None,
    limit: int | None = None,
    exclude_ids: str | os.PathLike[str] | None = None,
    wait: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportReport:
    """`import_published` of InternVid's metadata: JSON lines, also gzipped, or Parquet."""
    return import_published(
        dataset,
        files,
        INTERNVID,
        shard_videos=shard_videos,
        limit=limit,
        exclude_ids=exclude_ids,
        wait=wait,
        on_bytes=on_bytes,
    )

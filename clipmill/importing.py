"""Imports of published metadata from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clipmill.pipeline.catalog.index_writer import index_problem
from clipmill.pipeline.dataset.locks import dataset_lock, remove_if_empty
from clipmill.pipeline.dataset.run_records import check_place
from clipmill.pipeline.ingest.sources import fixed_shards_note
from clipmill.pipeline.ingest.span_import import ImportReport, import_spans
from clipmill.pipeline.recipes.recipe import SHARD_VIDEOS


def import_internvid(
    dataset: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    *,
    shard_videos: int | None = None,
    limit: int | None = None,
    exclude_ids: str | os.PathLike[str] | None = None,
    wait: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportReport:
    """Adds InternVid's published rows to a new or existing dataset, with spans, captions, scores.

    files: JSON lines, also gzipped, or Parquet; pass all files of a dataset at once.
    shard_videos: videos per shard, the unit of work, for new shards; 16 if not set.
    limit: takes only this many videos, with all their clips.
    exclude_ids: a file of known ids to reject, one per line.
    on_bytes: called with the number of bytes that were read since the last call.
    """
    place = Path(dataset).expanduser().absolute()
    check_place(place)
    is_new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    try:
        with dataset_lock(place, "import", wait=wait):
            note = None
            if shard_videos is not None:
                note = fixed_shards_note(place, shard_videos, "--shard-videos", by_hand=True)
            report = import_spans(
                place,
                [Path(file) for file in files],
                shard_videos=shard_videos or SHARD_VIDEOS,
                limit=limit,
                exclude_ids=None if exclude_ids is None else Path(exclude_ids),
                report_bytes=on_bytes,
            )
            report.note = note
            report.index_problem = index_problem(place)
            return report
    except BaseException:
        if is_new:
            remove_if_empty(place)
        raise

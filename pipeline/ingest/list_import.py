"""Imports published lists whose layout is not InternVid's, through the reader of lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.ingest.sources import ingest
from clipmill.pipeline.ingest.span_import import ImportReport


def import_lists(
    dataset: Path,
    specs: Sequence[SourceSpec],
    *,
    shard_videos: int,
    limit: int | None = None,
    exclude_ids: Path | None = None,
) -> ImportReport:
    """Adds the videos of the lists with their spans; counts what became of every row.

    Rows beyond a `limit` are not counted.
    """
    found = ingest(dataset, specs, shard_videos=shard_videos, limit=limit, exclude_ids=exclude_ids)
    taken = sum(counts.sources + counts.gathered for counts in found.lists)
    known = min(taken, sum(counts.known for counts in found.lists)) if found.kept else taken
    rejected = sum(counts.rejected for counts in found.lists)
    failed = sum(counts.failed for counts in found.lists)
    return ImportReport(
        rows=taken + rejected + failed,
        kept=taken - known,
        rejected=rejected,
        failed=failed,
        known=known,
        new_videos=found.kept,
        shards=list(found.shards),
    )

"""Finds rows of removed videos in the index's files, which hold copies of the tables' rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.schemas.damage import what_is_there
from clipmill.schemas.folders import INDEX, INDEX_MANIFEST


def videos_in_index(dataset: Path, videos: Iterable[str]) -> Iterator[tuple[Path, set[str]]]:
    """The index files that hold some of these videos, with those videos; damaged files are left
    out."""
    wanted = pa.array(sorted(videos), pa.string())
    for path in _files(dataset):
        if found := _videos_in(path, wanted):
            yield path, found


def drop_from_index(dataset: Path, videos: Iterable[str]) -> None:
    """Deletes the index files that hold these videos, or can't be checked.

    A part with a missing file no longer counts: queries read the tables instead, and the next
    update rebuilds it. The caller holds the dataset's lock.
    """
    wanted = pa.array(sorted(videos), pa.string())
    for path in _files(dataset):
        if _videos_in(path, wanted) != set():
            path.unlink(missing_ok=True)


def _files(dataset: Path) -> list[Path]:
    """All files of the index except the manifests, including those left by a killed writer."""
    return sorted(
        path
        for path in (dataset / INDEX).glob("*/*")
        if path.name != INDEX_MANIFEST and (path.is_symlink() or not path.is_dir())
    )


def _videos_in(path: Path, wanted: pa.Array) -> set[str] | None:
    """Those of the videos that a file holds; None if it can't be read."""
    if what_is_there(path):
        return None
    found: set[str] = set()
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["video_id"])["video_id"]
                found.update(pc.unique(ids.filter(pc.is_in(ids, wanted))).to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        return None
    return found

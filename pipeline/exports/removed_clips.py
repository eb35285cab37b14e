"""Handles removals from the dataset during an export: leaves the clips out, and counts them.

Shards are numbered and filled in order, so a removed clip changes its shard and all later ones.
These are written again; of the units of work, only those that lost clips are processed again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.dataset.shards import remove_all_leftovers
from clipmill.pipeline.dataset.tombstones import removed_videos
from clipmill.pipeline.exports.export_shards import SHARDS, notes_of
from clipmill.pipeline.exports.hub_card import CARD
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.selection import (
    Gone,
    Unit,
    load_selection,
    read_gone,
    read_rows,
    write_gone,
)
from clipmill.pipeline.exports.units import FAILURES, journal_of, media_folder, read_unit, unit_file
from clipmill.pipeline.exports.webdataset import INDEX


class Removals:
    """Reads the dataset's tombstones each time it is called; for when no worker is active.

    `known` are all videos that had been removed when it was last called.
    """

    def __init__(self, request: ExportRequest, rows: Path) -> None:
        self._request = request
        self._rows = rows
        self.known: set[str] = set()

    def leave_out(self) -> bool:
        """Leaves pinned clips out whose videos were removed since the last call; True if there
        were any.

        After a kill at any point, the next call does the same again.
        """
        removed = set(removed_videos(self._request.dataset))
        before = read_gone(self._rows)
        new = removed - self.known - before.videos
        self.known = removed
        if not new:
            return False
        selection = load_selection(self._rows)
        assert selection is not None  # the selection is pinned before the first call
        lost = {unit: count for unit in selection.units if (count := self._count(unit, new))}
        if not lost:
            return False
        self._drop_shards()
        for unit in selection.units:
            if unit in lost or self._lacks_media(unit):
                self._drop_work(unit)
        clips = dict(before.clips)
        for unit, count in lost.items():
            clips[unit.place] = clips.get(unit.place, 0) + count
        # Last: removals recorded here are not handled again.
        write_gone(self._rows, Gone(before.videos | new, clips))
        return True

    def _count(self, unit: Unit, videos: set[str]) -> int:
        ids = read_rows(self._rows, unit, ["video_id"])["video_id"]
        return pc.sum(pc.is_in(ids, pa.array(sorted(videos), pa.string()))).as_py() or 0

    def _drop_shards(self) -> None:
        """Deletes the notes about the shards first, then the shards and the files next to them."""
        request = self._request
        shutil.rmtree(notes_of(request), ignore_errors=True)
        first = request.output / f"{SHARDS[request.format]}-000000"
        name = re.compile(re.escape(first.name.removesuffix("000000")) + r"\d{6,}\.[a-z]+\Z")
        if first.parent.is_dir():
            remove_all_leftovers(first.parent)
            for path in first.parent.iterdir():
                if name.match(path.name):
                    path.unlink()
        beside = {"webdataset": [INDEX], "huggingface": [CARD]}.get(request.format, [])
        for other in [*beside, *([FAILURES] if request.cut is not None else [])]:
            (request.output / other).unlink(missing_ok=True)
        if first.parent != request.output:
            with contextlib.suppress(OSError):
                first.parent.rmdir()

    def _lacks_media(self, unit: Unit) -> bool:
        """Whether clips' own files are missing because they had been packed into shards."""
        request = self._request
        if request.cut is None or not unit_file(request.output, unit).exists():
            return False
        paths = read_unit(request, unit, ["media_path"])["media_path"].to_pylist()
        return not all((request.output / path).exists() for path in paths)

    def _drop_work(self, unit: Unit) -> None:
        if not self._request.has_units:
            return
        unit_file(self._request.output, unit).unlink(missing_ok=True)
        journal_of(self._request, unit).unlink(missing_ok=True)
        if self._request.cut is not None:
            folder = media_folder(self._request, unit)
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # of a unit that has no clips any more
                folder.parent.rmdir()
                folder.parent.parent.rmdir()

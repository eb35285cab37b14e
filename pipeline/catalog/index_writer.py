"""Builds the index that `pipeline/catalog/index.py` reads: part by part, in bounded memory.

Only one writer works on a dataset at a time (the caller holds the dataset's lock). Files are never
changed or renamed. Files that the manifest no longer names stay until the next update, for readers
that already have the catalog open.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.index import (
    IndexPart,
    Manifest,
    ShardFiles,
    StoredFile,
    can_be_indexed,
    folder_times,
    index_folder,
    right_parts,
    tables_read,
)
from clipmill.pipeline.catalog.published_writer import update_published_index
from clipmill.pipeline.dataset.published_scores import note_former
from clipmill.pipeline.dataset.shards import (
    commit,
    shard_name,
    shard_path,
    temporary_beside,
    write_json,
)
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import DamagedFile, reading
from clipmill.schemas.folders import INDEX, INDEX_MANIFEST, INDEX_OF_PUBLISHED
from clipmill.schemas.sql_text import escaped_for_glob, literal

PART_CLIPS = 250_000
PART_GROUPS = 2_000
MEMORY_LIMIT = "2GB"
# A folder's modification time is trusted only after this delay, so that two changes can't share
# one.
_SETTLED_SECONDS = 0.1
_MAKERS = {"clips": views.clip_rows, "videos": views.video_rows}


@dataclass(frozen=True)
class IndexReport:
    """What was done: how many parts there are now, how many are new, and the clips in all.

    `n_published` counts clips that are only published, which have files of their own.
    """

    n_parts: int
    n_new: int
    n_clips: int
    n_published: int = 0


def update_index(
    dataset: Path, *, part_clips: int = PART_CLIPS, keep_former: bool = True
) -> IndexReport | None:
    """Updates the index; None if there is nothing to index yet.

    The caller holds the dataset's lock. If the update is killed, complete parts stay. Without
    `keep_former`, files that were in use until now are deleted at once: they may hold removed
    rows.
    """
    note_former(dataset)
    with open_catalog(
        dataset, allow_external=True, memory_limit=MEMORY_LIMIT, use_index=False
    ) as catalog:
        published = _update_published(catalog, keep_former)
        report = None
        if can_be_indexed(catalog.layout.steps):
            report = _IndexUpdate(catalog, part_clips, keep_former).write()
    if report is None and not keep_former:
        _drop_views(dataset)
    if published:
        return replace(report or IndexReport(0, 0, 0), n_published=published)
    return report


def _update_published(catalog: Catalog, keep_former: bool) -> int:
    source = catalog.layout.published_source
    if source is None:
        shutil.rmtree(catalog.layout.dataset / INDEX_OF_PUBLISHED, ignore_errors=True)
        return 0
    manifest = update_published_index(source, catalog.connection, keep_former=keep_former)
    return sum(part.n_clips for part in manifest.parts)


def _drop_views(dataset: Path) -> None:
    """Deletes the index of the views."""
    for path in (dataset / INDEX).glob("*"):
        if path != dataset / INDEX_OF_PUBLISHED:
            shutil.rmtree(path, ignore_errors=True)


def index_problem(dataset: Path) -> str | None:
    """Updates the index; returns a message if that fails, which does not fail the run."""
    try:
        update_index(dataset)
    except (OSError, duckdb.Error, DamagedFile) as error:
        if isinstance(error, DamagedFile) and not error.where.startswith(f"{INDEX}/"):
            raise  # then more than the index is damaged
        return (
            f"The index of the catalog could not be built ({error}); queries work without it, "
            f"but take longer. `clipmill index {shell_word(dataset)}` tries again."
        )
    return None


class _IndexUpdate:
    """One update of the index."""

    def __init__(self, catalog: Catalog, part_clips: int, keep_former: bool) -> None:
        self._keep_former = keep_former
        layout = catalog.layout
        self._catalog = catalog
        self._steps = layout.steps
        self._tables = tables_read(layout.steps)
        self._dataset = layout.dataset
        self._part_clips = part_clips
        self._folder = index_folder(layout.dataset, layout.steps)
        self._files = ShardFiles(self._tables)
        self._removed = frozenset(stone.name for stone in layout.removals if stone.purged_at)

    def write(self) -> IndexReport | None:
        before = Manifest.read(self._folder)
        kept = self._still_right(before)
        todo = sorted(set(self._files.states).difference(*(part.bases for part in kept)), key=int)
        if todo:
            # Small parts are rebuilt together with new groups, to keep the number of parts low.
            small = [part for part in kept if part.n_clips < self._part_clips // 2]
            kept = [part for part in kept if part not in small]
            todo = sorted({*todo, *(base for part in small for base in part.bases)}, key=int)
        self._folder.mkdir(parents=True, exist_ok=True)
        made: list[IndexPart] = []
        number = self._free_number()
        groups = list(self._groups(todo))
        for bases in groups:
            part = self._make(bases, number + len(made))
            if part is None:
                return None
            made.append(part)
            if len(made) < len(groups):
                self._commit(Manifest((*kept, *made), removed=self._removed))
        parts = (*kept, *made)
        manifest = Manifest(parts, self._settled_times(), self._count_doubled(parts), self._removed)
        if manifest != before:
            self._commit(manifest)
        if manifest != before or not self._keep_former:
            self._sweep(before if self._keep_former else None, manifest)
        return IndexReport(len(parts), len(made), sum(part.n_clips for part in parts))

    def _still_right(self, before: Manifest | None) -> list[IndexPart]:
        if before is None:
            return []
        parts = right_parts(before.parts, self._files.states)
        return [part for part in parts if all(file.is_whole(self._folder) for file in part.files)]

    def _groups(self, bases: Sequence[str]) -> Iterator[list[str]]:
        """Whole base shards in order, as many as fit one part."""
        split = views.primary(self._steps, "split_clips")
        assert split is not None  # without clips there is no index
        folder = Path(split.folder or "")  # without shards the folder is never listed
        shards = self._files.by_table[split.step]
        group: list[str] = []
        clips = 0
        for base in bases:
            rows = sum(_rows_in(shard_path(folder, name)) for name in shards.get(base, ()))
            if group and (clips + rows > self._part_clips or len(group) >= PART_GROUPS):
                yield group
                group, clips = [], 0
            group.append(base)
            clips += rows
        if group:
            yield group

    def _make(self, bases: list[str], number: int) -> IndexPart | None:
        """Writes rows of some base shards to new files; None if these can't hold their types."""
        steps = self._files.only(bases, self._steps)
        files = {}
        for name, rows in _MAKERS.items():
            path = self._folder / f"{name}-{shard_name(number)}.parquet"
            if not self._write_rows(views.once(rows(steps), keep_groups=True), path):
                return None
            files[name] = StoredFile.of(path)
        n_clips = pq.read_metadata(self._folder / files["clips"].name).num_rows
        states = self._files.states
        return IndexPart(
            files["clips"], files["videos"], n_clips, {base: states[base] for base in bases}
        )

    def _write_rows(self, query: str, path: Path) -> bool:
        connection = self._catalog.connection
        temporary = temporary_beside(path)
        try:
            connection.execute(
                f"COPY ({query}) TO {literal(str(temporary))} "
                "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
            )
            written = connection.execute(
                f"DESCRIBE FROM read_parquet({literal(escaped_for_glob(str(temporary)))}, "
                "hive_partitioning=false)"
            ).fetchall()
            if written != connection.execute(f"DESCRIBE {query}").fetchall():
                return False
            commit(temporary, path)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def _count_doubled(self, parts: Sequence[IndexPart]) -> int:
        if not parts:
            return 0
        files = [str(self._folder / part.videos.name) for part in parts]
        pairs = views.stored_rows(["video_id"], files, hide_removed=False)
        ((found,),) = self._catalog.connection.execute(
            f"SELECT count(*) FROM ({views.doubled_groups([pairs])})"
        ).fetchall()
        return int(found)

    def _settled_times(self) -> dict[str, int]:
        """The folders' modification times, once a later change would have a different one."""
        times = folder_times(self._dataset, self._tables)
        if all(at % 1_000_000_000 == 0 for at in times.values()):
            return {}  # no times, or whole seconds: too coarse for this
        left = _SETTLED_SECONDS - (time.time() - max(times.values()) / 1e9)
        if 0 < left <= _SETTLED_SECONDS:
            time.sleep(left)
        return times

    def _commit(self, manifest: Manifest) -> None:
        write_json(self._folder / INDEX_MANIFEST, manifest.record())

    def _free_number(self) -> int:
        found = [
            int(path.stem.partition("-")[2])
            for path in self._folder.glob("*-*.parquet")
            if path.stem.partition("-")[2].isdigit()
        ]
        return max(found, default=-1) + 1

    def _sweep(self, before: Manifest | None, now: Manifest) -> None:
        """Deletes files that neither the last manifest nor the one before it names."""
        wanted = {
            file.name
            for manifest in (before, now)
            if manifest is not None
            for part in manifest.parts
            for file in part.files
        }
        for path in self._folder.iterdir():
            if path.name not in wanted and path.name != INDEX_MANIFEST:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        if before is not None or not self._keep_former:
            # An index with other columns, older than this one.
            others = (self._folder, self._dataset / INDEX_OF_PUBLISHED)
            for path in self._folder.parent.iterdir():
                if path not in others:
                    shutil.rmtree(path, ignore_errors=True)


def _rows_in(path: Path) -> int:
    with reading(path):
        return int(pq.read_metadata(path).num_rows)

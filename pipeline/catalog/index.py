"""The index: the rows of the `clips` and `videos` views, joined once and kept in wide files.

index/<columns>/manifest.json         its parts, and what they were made from
index/<columns>/clips-000003.parquet  rows of some whole groups of shards, with `_base`
index/<columns>/videos-000003.parquet

It holds only data that the tables have, too, so the whole folder may be deleted at any time. A
part is valid only while its groups have exactly the shard files that it was made from, unchanged;
the rows of all other groups come from the tables directly. `<columns>` is a hash over the SQL that
makes the rows, so a view with other columns, or from other tables, has a separate index.
`pipeline/catalog/index_writer.py` builds it.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog import views
from clipmill.pipeline.dataset.shards import base_shard, is_shard, retry_number
from clipmill.schemas.damage import DamagedFile, check_is_file, read_json, what_is_there
from clipmill.schemas.folders import INDEX, INDEX_MANIFEST
from clipmill.schemas.step_tables import StepTable

VIEWS = ("clips", "videos")
_VERSION = 1
_TAIL_BYTES = 4096
_FILE = re.compile(r"(clips|videos)-\d{6,}\.parquet\Z")


@dataclass(frozen=True)
class StoredFile:
    """A file of the index; its size and last bytes identify its content."""

    name: str
    size_bytes: int
    tail: int

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        return cls(path.name, *_size_and_tail(path))

    def is_whole(self, folder: Path) -> bool:
        if not _FILE.match(self.name):
            return False
        try:
            return _size_and_tail(folder / self.name) == (self.size_bytes, self.tail)
        except OSError:
            return False


def _size_and_tail(path: Path) -> tuple[int, int]:
    if what_is_there(path):
        raise OSError("no file")  # a named pipe would block
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return size, zlib.crc32(file.read())


@dataclass(frozen=True)
class IndexPart:
    """The rows of some groups of shards: one file per view, and by base shard what it was made
    from."""

    clips: StoredFile
    videos: StoredFile
    n_clips: int
    bases: dict[str, str]

    @property
    def files(self) -> tuple[StoredFile, StoredFile]:
        return self.clips, self.videos

    def record(self) -> dict[str, Any]:
        return {
            "clips": vars(self.clips),
            "videos": vars(self.videos),
            "n_clips": self.n_clips,
            "bases": self.bases,
        }

    @classmethod
    def from_record(cls, value: dict[str, Any]) -> IndexPart:
        return cls(
            StoredFile(**value["clips"]),
            StoredFile(**value["videos"]),
            int(value["n_clips"]),
            dict(value["bases"]),
        )


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    `folders` has each table folder's modification time when all parts were last found valid;
    `doubled` is how many videos are in several groups, None if unknown; `removed` names the
    removals that were carried out before the parts were made.
    """

    parts: tuple[IndexPart, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)
    doubled: int | None = None
    removed: frozenset[str] = frozenset()

    def record(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "parts": [part.record() for part in self.parts],
            "folders": self.folders,
            "doubled": self.doubled,
            "removed": sorted(self.removed),
        }

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder; None if there is no usable one."""
        try:
            value = read_json(folder / INDEX_MANIFEST)
            if value["version"] != _VERSION:
                return None
            parts = tuple(map(IndexPart.from_record, value["parts"]))
            folders = {str(name): int(at) for name, at in value["folders"].items()}
            doubled = value["doubled"]
            return cls(
                parts,
                folders,
                None if doubled is None else int(doubled),
                frozenset(value["removed"]),
            )
        except (DamagedFile, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def tables_read(steps: Sequence[StepTable]) -> list[StepTable]:
    """The tables that the stored views read."""
    names = views.tables_of_wide_views(steps)
    return [step for step in steps if step.step in names]


def can_be_indexed(steps: Sequence[StepTable]) -> bool:
    return all(
        views.primary(steps, name) is not None for name in ("download_videos", "split_clips")
    )


def index_folder(dataset: Path, steps: Sequence[StepTable]) -> Path:
    """The folder of the index of these tables."""
    plain = [
        replace(
            step,
            folder=os.path.relpath(step.folder, dataset) if step.folder else None,
            retries=(),
            shards=None,
            removed=False,
            odd=None,
        )
        for step in steps
    ]
    text = "\n".join((str(_VERSION), views.clip_rows(plain), views.video_rows(plain)))
    return dataset / INDEX / hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class ShardFiles:
    """The committed files of some tables, found by listing their folders."""

    tables: Sequence[StepTable]

    @cached_property
    def by_table(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The names of the shards, by step and base shard."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for table in self.tables:
            groups: dict[str, list[str]] = {}
            for name, _ in self._listed[table.step]:
                groups.setdefault(base_shard(name), []).append(name)
            found[table.step] = {base: tuple(names) for base, names in groups.items()}
        return found

    @cached_property
    def states(self) -> dict[str, str]:
        """By base shard, a hash over its files in all tables: names, sizes, modification times.

        Files are only ever replaced by renaming, so one with the same size and time is unchanged.
        """
        lines: dict[str, list[str]] = {}
        for table in self.tables:
            for name, entry in self._listed[table.step]:
                found = entry.stat()
                lines.setdefault(base_shard(name), []).append(
                    f"{table.step} {name} {found.st_size} {found.st_mtime_ns}"
                )
        return {
            base: hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
            for base, texts in sorted(lines.items())
        }

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, os.DirEntry[str]]]]:
        return {table.step: _shards_in(table.folder) for table in self.tables}

    def only(self, bases: Iterable[str], steps: Sequence[StepTable]) -> list[StepTable]:
        """The steps, with those among `tables` narrowed to some base shards."""
        wanted = list(bases)
        return [
            self._narrowed(step, wanted) if step.step in self.by_table else step for step in steps
        ]

    def _narrowed(self, step: StepTable, bases: Sequence[str]) -> StepTable:
        groups = self.by_table[step.step]
        shards = tuple(name for base in bases for name in groups.get(base, ()))
        retries = tuple(name for name in shards if retry_number(name))
        return replace(step, shards=shards, retries=retries)


def _shards_in(folder: str | None) -> list[tuple[str, os.DirEntry[str]]]:
    """Names and entries of the shards in a folder; DamagedFile if one is not a file."""
    if folder is None:
        return []
    with os.scandir(folder) as entries:
        found = [
            (entry.name.removesuffix(".parquet"), entry)
            for entry in entries
            if entry.name.endswith(".parquet")
        ]
    shards = sorted(
        ((name, entry) for name, entry in found if is_shard(name)), key=lambda pair: pair[0]
    )
    for _, entry in shards:
        if not entry.is_file():
            check_is_file(Path(entry.path))
    return shards


def folder_times(dataset: Path, tables: Sequence[StepTable]) -> dict[str, int]:
    """When each table's folder last changed: a file was added, removed or replaced."""
    return {
        os.path.relpath(table.folder, dataset): Path(table.folder).stat().st_mtime_ns
        for table in tables
        if table.folder
    }


@dataclass(frozen=True)
class Coverage:
    """Where the rows of the views come from now: parts of the index, and tables for the rest.

    `live` is None if the parts cover everything. `may_double` says that a video may be in several
    of the places; `hide_removed` that parts may hold removed videos.
    """

    folder: Path
    parts: tuple[IndexPart, ...]
    live: list[StepTable] | None
    may_double: bool
    hide_removed: bool

    def files(self, view: str) -> list[str]:
        return [str(self.folder / getattr(part, view).name) for part in self.parts]


def find_coverage(
    dataset: Path, steps: Sequence[StepTable], removals: Iterable[str]
) -> Coverage | None:
    """The valid part of a dataset's index; None if it is useless.

    `removals` are the names of all tombstones.
    """
    if not can_be_indexed(steps):
        return None
    folder = index_folder(dataset, steps)
    manifest = Manifest.read(folder)
    if manifest is None:
        return None
    tables = tables_read(steps)
    hide = not manifest.removed.issuperset(removals)
    whole = tuple(
        part for part in manifest.parts if all(file.is_whole(folder) for file in part.files)
    )
    if (
        len(whole) == len(manifest.parts)
        and manifest.folders
        and manifest.folders == folder_times(dataset, tables)
    ):
        return Coverage(folder, whole, None, manifest.doubled != 0, hide)
    files = ShardFiles(tables)
    try:
        parts = right_parts(whole, files.states)
    except OSError:  # a file disappeared during the check
        return None
    if not parts:
        return None
    rest = set(files.states).difference(*(part.bases for part in parts))
    live = files.only(sorted(rest, key=int), steps) if rest else None
    is_same = live is None and parts == manifest.parts
    return Coverage(folder, parts, live, not is_same or manifest.doubled != 0, hide)


def right_parts(parts: Iterable[IndexPart], states: dict[str, str]) -> tuple[IndexPart, ...]:
    """The parts whose shards are all unchanged."""
    return tuple(
        part
        for part in parts
        if all(states.get(base) == state for base, state in part.bases.items())
    )

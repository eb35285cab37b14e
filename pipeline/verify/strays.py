"""Finds files that no run needs: temporary ones, stray names, unnamed tables and media."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.verify.findings import Book
from clipmill.pipeline.verify.layout import Survey, list_folder
from clipmill.pipeline.verify.shard_checks import ShardRows
from clipmill.schemas import folders
from clipmill.schemas.damage import DamagedFile, reading, what_is_there
from clipmill.schemas.errors import storable
from clipmill.schemas.file_locks import is_free
from clipmill.schemas.words import counted

_TEMPORARY = re.compile(r"\..*\.tmp\Z|\..*~[0-9a-f]{8}\Z")
_SOURCE_FILE = re.compile(r"([0-9a-f]{20})\.")
_SHOWN = 1000
_IN_RUNS = (Path(folders.CHOICES).name, Path(folders.FITS).name)
_NOTES_OF_SOURCES = tuple(
    Path(place).name
    for place in (folders.LISTS, folders.LIST_COUNTS, folders.EXCLUDED, folders.PUBLISHED)
)


class Names:
    """Names in tables over the whole dataset, kept in DuckDB, which can spill to disk."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE named_media (name VARCHAR)")
        connection.execute("CREATE TABLE named_sources (name VARCHAR)")

    def take(self, found: dict[Step, dict[str, ShardRows]]) -> None:
        """Adds the media paths and source keys of one base shard."""
        for step, shards in found.items():
            for rows in shards.values():
                if step.label == folders.SOURCES:
                    self._add("named_sources", rows.keys)
                elif {"video_id", "path"} <= set(rows.kept.column_names):
                    self._add("named_media", rows.kept["path"].drop_null().to_pylist())

    def without(self, table: str, names: Iterable[str]) -> set[str]:
        """Those of the names that are not in the table."""
        found = set(names)
        # Tables hold valid text, so they can't contain any other name.
        no_text = {name for name in found if storable(name) != name}
        given = pa.table({"name": pa.array(found - no_text, pa.string())})
        if not given.num_rows:
            return no_text
        self._connection.register("given_names", given)
        rows = self._connection.execute(
            f"SELECT name FROM given_names ANTI JOIN {table} USING (name)"
        ).fetchall()
        self._connection.unregister("given_names")
        return no_text | {name for (name,) in rows}

    def _add(self, table: str, names: Iterable[str]) -> None:
        self._connection.register("given_names", pa.table({"name": pa.array(names, pa.string())}))
        self._connection.execute(f"INSERT INTO {table} SELECT name FROM given_names")
        self._connection.unregister("given_names")


@dataclass
class StrayChecks:
    """Checks every name in the dataset's folder, once the tables have been read."""

    survey: Survey
    book: Book
    names: Names
    sources_known: bool = True
    """Whether all shards of sources could be read."""
    media_known: bool = True
    """Whether all tables that name media exist and could be read."""

    def check(self) -> None:
        self._top()
        for place, folder in self.survey.folders.items():
            self._others(
                place, folder.others, allowed=_NOTES_OF_SOURCES if place == folders.SOURCES else ()
            )
        for name in (folders.RUNS, folders.REMOVED, folders.RETRIES, folders.JOURNAL):
            self._others(
                name,
                [
                    entry
                    for entry in _listed(self.survey.dataset / name)
                    if entry.startswith(".") or not entry.endswith(".json")
                ],
                allowed=_IN_RUNS if name == folders.RUNS else (),
            )
        for name in (folders.CHOICES, folders.FITS):
            self._others(
                name,
                [
                    entry
                    for entry in _listed(self.survey.dataset / name)
                    if entry.startswith(".") or not entry.endswith(".parquet")
                ],
            )
        self._lists()
        self._scratch()
        self._subsets()
        self._audits()
        self._media()

    def _others(self, place: str, entries: Iterable[str], allowed: tuple[str, ...] = ()) -> None:
        for name in entries:
            if name not in allowed:
                self._stray(f"{place}/{name}")

    def _stray(self, where: str) -> None:
        if _TEMPORARY.match(Path(where).name):
            self.book.stray("temporary", where, "was left behind by a killed process")
        else:
            self.book.stray("orphan", where, "is not a file of a run")

    def _top(self) -> None:
        dataset = self.survey.dataset
        known = {place.partition("/")[0] for place in self.survey.folders}
        for name in _listed(dataset):
            path = dataset / name
            if name in (folders.LOCK, folders.COMMITS):
                self._lock(path)
                continue
            if name in folders.OWN_FOLDERS or name == folders.SCRATCH:
                continue
            if _TEMPORARY.match(name):
                self._stray(name)
            elif name in known and path.is_dir():
                for inner in _listed(path):
                    if f"{name}/{inner}" not in self.survey.folders:
                        self._unknown_table(f"{name}/{inner}", is_table=True)
            elif path.is_dir() and any(list_folder(path / inner).shards for inner in _listed(path)):
                for inner in _listed(path):
                    self._unknown_table(f"{name}/{inner}", is_table=False)
            elif len(self.book.report.others) < _SHOWN:
                self.book.report.others.append(f"{name}/" if path.is_dir() else name)

    def _lock(self, path: Path) -> None:
        if there := what_is_there(path):
            self.book.fault(
                "orphan",
                path.relative_to(self.survey.dataset).as_posix(),
                f"is {there}, in the place of a lock file",
                "delete it or move it away; until then no command can write to the dataset",
            )

    def _unknown_table(self, place: str, *, is_table: bool) -> None:
        """Reports a folder next to or in a table's folder that no record names."""
        found = list_folder(self.survey.dataset / place)
        if not is_table and not found.shards:
            return
        if self.survey.records_known:
            shards = f" ({counted(len(found.shards), 'shard')})" if found.shards else ""
            self.book.stray("orphan", place, f"no run record names it{shards}")
        else:
            self.book.note(
                "orphan",
                place,
                "no readable run record names it",
                "fix the records, or run its recipe again",
            )

    def _lists(self) -> None:
        for place in (folders.LISTS, folders.LIST_COUNTS):
            names = _listed(self.survey.dataset / place)
            self._others(place, [name for name in names if _TEMPORARY.match(name)])

    def _scratch(self) -> None:
        for name in _listed(self.survey.dataset / folders.SCRATCH):
            self.book.stray(
                "temporary", f"{folders.SCRATCH}/{name}", "is the work folder of a dead worker"
            )

    def _subsets(self) -> None:
        place = self.survey.dataset / folders.SUBSETS
        for name in _listed(place):
            if name.startswith(".") and name.endswith(".tmp"):
                subset = name[1:].partition("~")[0]
                if is_free(folders.subset_lock(self.survey.dataset, subset)):
                    self._stray(f"{folders.SUBSETS}/{name}")
            elif not name.startswith(".") and not os.path.lexists(
                place / name / folders.SUBSET_RECORD
            ):
                self._stray(f"{folders.SUBSETS}/{name}")

    def _audits(self) -> None:
        names = _listed(self.survey.dataset / folders.AUDITS)
        lock = folders.audits_lock(self.survey.dataset)
        if lock.name in names:
            self._lock(lock)
        self._others(
            folders.AUDITS,
            [name for name in names if name.startswith(".") or not name.endswith(".json")],
            allowed=(lock.name,),
        )

    def _media(self) -> None:
        media = self.survey.dataset / folders.MEDIA
        for names in _in_chunks(media):
            files = [name for name in names if not name.startswith(".")]
            for name in sorted(set(names) - set(files)):
                if not (media / name).is_dir():
                    self._stray(f"{folders.MEDIA}/{name}")
            unnamed = self.names.without(
                "named_media", [f"{folders.MEDIA}/{name}" for name in files]
            )
            for where in sorted(unnamed):
                self._unnamed_media(where)
        self._work()
        for place in (folders.MEDIA_READY, folders.MEDIA_FOUND):
            self._notes(place)
        for rules in _listed(self.survey.dataset / folders.MEDIA_CLAIMS):
            self._claims(f"{folders.MEDIA_CLAIMS}/{rules}")

    def _work(self) -> None:
        """Reports leftovers of killed downloads, unless a run will resume them."""
        folder = self.survey.dataset / folders.MEDIA_WORK
        names = _listed(folder)
        unknown = self.names.without("named_sources", {name.partition(".")[0] for name in names})
        for name in names:
            is_wanted = not self.media_known and name not in unknown and "." not in name
            if not is_wanted and is_free(folder / name / folders.LOCK):
                self.book.stray(
                    "temporary",
                    f"{folders.MEDIA_WORK}/{name}",
                    "was left behind by a killed download",
                )

    def _unnamed_media(self, where: str) -> None:
        path = self.survey.dataset / where
        video = path.name.partition(".")[0]
        is_claimed = any((self.survey.dataset / folders.MEDIA_CLAIMS).glob(f"*/{_escaped(video)}"))
        if self.media_known or not is_claimed:
            self.book.stray("orphan", where, "no table names it")

    def _notes(self, place: str) -> None:
        """Checks files named by the key of a source."""
        for names in _in_chunks(self.survey.dataset / place):
            keys = {name: match[1] for name in names if (match := _SOURCE_FILE.match(name))}
            for name in sorted(set(names) - set(keys)):
                self._stray(f"{place}/{name}")
            unknown = self.names.without("named_sources", set(keys.values()))
            for name, key in sorted(keys.items()):
                if name.endswith(".tmp"):
                    self.book.stray(
                        "temporary", f"{place}/{name}", "was left behind by a killed process"
                    )
                elif key in unknown and self.sources_known:
                    self.book.stray(
                        "orphan", f"{place}/{name}", "belongs to no source of the dataset"
                    )

    def _claims(self, place: str) -> None:
        folder = self.survey.dataset / place
        for names in _in_chunks(folder):
            holders = {}
            for name in names:
                if name.startswith("."):
                    self.book.stray(
                        "temporary", f"{place}/{name}", "was left behind by a killed process"
                    )
                    continue
                try:
                    with reading(folder / name):
                        text = (folder / name).read_text("utf-8")
                    holders[name] = text.partition("\n")[0]
                except (DamagedFile, OSError):
                    holders[name] = ""
            unknown = self.names.without("named_sources", set(holders.values()))
            for name, key in sorted(holders.items()):
                if key in unknown and self.sources_known:
                    self.book.stray(
                        "orphan",
                        f"{place}/{name}",
                        "holds the video for a source that the dataset does not have",
                    )


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _in_chunks(folder: Path, size: int = 50_000) -> Iterator[list[str]]:
    """The names in a folder, possibly millions, in chunks."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) == size:
                    yield names
                    names = []
    except (FileNotFoundError, NotADirectoryError):
        return
    if names:
        yield names


def _escaped(text: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", text)

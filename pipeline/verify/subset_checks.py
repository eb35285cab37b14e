"""Checks frozen subsets against their records, and the index against the tables."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.index import (
    IndexPart,
    Manifest,
    ShardFiles,
    find_coverage,
    index_folder,
    right_parts,
    tables_read,
)
from clipmill.pipeline.catalog.layout import Layout
from clipmill.pipeline.catalog.published_index import PublishedManifest, made_of
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.subsets.freeze import id_lines
from clipmill.pipeline.verify.findings import Book, some
from clipmill.pipeline.verify.layout import Survey
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import DamagedFile, read_json, what_is_there
from clipmill.schemas.folders import (
    INDEX,
    INDEX_MANIFEST,
    INDEX_OF_PUBLISHED,
    SUBSET_CLIPS,
    SUBSET_RECORD,
    subset_records,
)
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.words import counted

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    pa.ArrowException,
    duckdb.Error,
)


@dataclass
class SubsetChecks:
    """Checks subsets. They can't be recreated, so none of them is set aside."""

    survey: Survey
    book: Book
    connection: duckdb.DuckDBPyConnection
    clips: str | None
    """A query for the ids of all clips that the catalog shows; None if not all can be read."""

    def check(self) -> None:
        for path in subset_records(self.survey.dataset):
            self.book.report.checked["subsets"] += 1
            where = path.parent.relative_to(self.survey.dataset).as_posix()
            try:
                if odd := _no_files(path.parent):
                    self._tell(where, f"contains something that is not a file: {some(odd)}")
                    continue
                info = read_json(path)
                problems = self._problems(path.parent, info)
            except DamagedFile as error:
                self._tell(where, f"{path.name} can't be read ({error.reason})")
                continue
            except _UNREADABLE as error:
                self._tell(where, f"can't be read ({type(error).__name__}: {error})")
                continue
            if problems:
                self._tell(where, "; ".join(problems))
                continue
            self._check_ids(path.parent, where, info)

    def _tell(self, where: str, what: str) -> None:
        self.book.fault(
            "subset",
            where,
            what,
            "delete the folder and freeze the subset again with "
            "its recipe, which is in subset.json",
        )

    def _problems(self, folder: Path, info: dict[str, Any]) -> list[str]:
        problems = []
        digest, rows, previous = hashlib.sha256(), 0, ""
        is_ordered = True
        for entry in info["files"]:
            in_file = 0
            with pq.ParquetFile(folder / entry["name"], page_checksum_verification=True) as file:
                for batch in file.iter_batches(100_000):
                    ids = batch.column("clip_id")
                    digest.update(id_lines(ids))
                    names = [previous, *ids.to_pylist()]
                    is_ordered &= all(a < b for a, b in itertools.pairwise(names))
                    positions = batch.column("position").to_pylist()
                    is_ordered &= positions == list(range(rows, rows + batch.num_rows))
                    previous = names[-1]
                    rows += batch.num_rows
                    in_file += batch.num_rows
            if in_file != entry["clips"]:
                problems.append(
                    f"{entry['name']} has {counted(in_file, 'clip')}, subset.json says "
                    f"{entry['clips']:,}"
                )
        listed = {entry["name"] for entry in info["files"]}
        extra = [
            path.name for path in folder.iterdir() if path.name not in {*listed, SUBSET_RECORD}
        ]
        if extra:
            problems.append(f"has files that subset.json does not list: {some(extra)}")
        if rows != info["n_clips"]:
            problems.append(f"has {counted(rows, 'clip')}, subset.json says {info['n_clips']:,}")
        if f"sha256:{digest.hexdigest()}" != info["hash"]:
            problems.append("the hash over its ids differs from the recorded one")
        if not is_ordered:
            problems.append("its ids are not sorted and distinct")
        return problems + self._snapshot_problems(folder, info)

    def _snapshot_problems(self, folder: Path, info: dict[str, Any]) -> list[str]:
        problems = []
        files = literal(f"{escaped_for_glob(str(folder))}/{SUBSET_CLIPS}")
        (videos,) = self.connection.execute(
            f"SELECT count(DISTINCT video_id) FROM read_parquet({files})"
        ).fetchall()[0]
        if videos != info["n_videos"]:
            problems.append(
                f"has {counted(videos, 'video')}, subset.json says {info['n_videos']:,}"
            )
        seen = info["catalog"]
        text = json.dumps(
            {
                "steps": {
                    name: [step["fingerprint"], step["rows"]]
                    for name, step in seen["steps"].items()
                },
                "clips": seen["clips"],
                "digest": seen["clips_digest"],
            },
            sort_keys=True,
        )
        made = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not made == seen["id"] == info["snapshot"]:
            problems.append(
                f"what it records about its catalog doesn't match its snapshot {info['snapshot']}"
            )
        return problems

    def _check_ids(self, folder: Path, where: str, info: dict[str, Any]) -> None:
        """Checks whether the catalog still has its clips."""
        if self.clips is None:
            self.book.note(
                "subset",
                where,
                "its ids were not checked: tables of clips are damaged or not done yet",
            )
            return
        files = literal(f"{escaped_for_glob(str(folder))}/{SUBSET_CLIPS}")
        self.connection.register(
            "removed_videos",
            pa.table({"video_id": pa.array(sorted(self.survey.removed_videos), pa.string())}),
        )
        gone, removed, example = self.connection.execute(
            "SELECT count(*), count(*) FILTER (video_id IN (SELECT video_id FROM removed_videos)),"
            " min(clip_id) FILTER (video_id NOT IN (SELECT video_id FROM removed_videos)) FROM "
            f"read_parquet({files}) ANTI JOIN ({self.clips}) USING (clip_id)"
        ).fetchall()[0]
        if removed:
            self.book.note(
                "subset",
                where,
                f"{counted(removed, 'clip')} of it "
                f"{'was' if removed == 1 else 'were'} removed from the dataset since",
            )
        rest = gone - removed
        if not rest:
            return
        now = fingerprints(self.survey.newest)
        then = {name: step["fingerprint"] for name, step in info["catalog"]["steps"].items()}
        changed = sorted(name for name, made in then.items() if now.get(name) != made)
        what = f"{counted(rest, 'clip')} of it {'is' if rest == 1 else 'are'} not in the catalog"
        if changed:
            self.book.note("subset", where, f"{what}: {some(changed)} changed since")
        else:
            self.book.fault(
                "subset",
                where,
                f"{what}, though no step changed: e.g. {example}",
                f"{self.book.again} makes what is missing; if there is nothing to "
                "do, freeze the subset again",
            )


def _no_files(folder: Path) -> list[str]:
    """Reports anything in a subset's folder that is not a file, and must not be opened."""
    return [path.name for path in folder.iterdir() if what_is_there(path)]


def check_index(survey: Survey, layout: Layout, book: Book) -> None:
    """The index holds no data of its own: if outdated, it is a note; if it breaks queries, a
    fault."""
    root = survey.dataset / INDEX
    if not root.is_dir():
        return
    again = f"`clipmill index {shell_word(book.dataset)}` rebuilds it"
    wanted = index_folder(survey.dataset, layout.steps)
    for folder in sorted(root.iterdir()):
        where = folder.relative_to(survey.dataset).as_posix()
        if folder == survey.dataset / INDEX_OF_PUBLISHED:
            _check_published(folder, where, layout, book, again)
            continue
        if folder != wanted:
            book.note(
                "index", where, "covers other tables than the newest run's", again, at_rest=True
            )
            continue
        if there := what_is_there(folder / INDEX_MANIFEST):
            book.stray("index", f"{where}/{INDEX_MANIFEST}", f"is {there}, not a file")
            continue
        manifest = Manifest.read(folder)
        if manifest is None:
            book.note(
                "index", where, "has no readable manifest; queries ignore it", again, at_rest=True
            )
            continue
        whole = [
            part for part in manifest.parts if all(file.is_whole(folder) for file in part.files)
        ]
        if len(whole) < len(manifest.parts):
            book.note(
                "index",
                where,
                f"{counted(len(manifest.parts) - len(whole), 'part')} of "
                f"{len(manifest.parts)} damaged; queries ignore them",
                again,
                at_rest=True,
            )
        _check_parts(folder, where, [file.name for part in whole for file in part.files], book)
        _check_coverage(survey, layout, book, where, whole)


def _check_published(folder: Path, where: str, layout: Layout, book: Book, again: str) -> None:
    """The index of published clips: a note if it is outdated, a fault if it breaks queries."""
    source = layout.published_source
    manifest = PublishedManifest.read(folder)
    if source is None or manifest is None or manifest.made_of != made_of(source.scores):
        book.note("index", where, "is not in use; queries ignore it", again, at_rest=True)
        return
    damaged = [part for part in manifest.parts if not part.file.is_whole(folder)]
    if damaged:
        book.note(
            "index",
            where,
            f"{counted(len(damaged), 'part')} of {len(manifest.parts)} damaged; queries ignore "
            "them",
            again,
            at_rest=True,
        )
    whole = [part for part in manifest.parts if part not in damaged]
    _check_parts(folder, where, [part.file.name for part in whole], book)
    for part in whole:
        path = folder / part.file.name
        with contextlib.suppress(OSError, pa.ArrowException):
            rows = pq.read_metadata(path).num_rows
            if rows != part.n_clips:
                book.stray(
                    "index", f"{where}/{path.name}", f"has {rows} rows instead of {part.n_clips}"
                )


def _check_coverage(
    survey: Survey, layout: Layout, book: Book, where: str, whole: Sequence[IndexPart]
) -> None:
    files = ShardFiles(tables_read(layout.steps))
    try:
        right = right_parts(whole, files.states)
        rest = set(files.states).difference(*(part.bases for part in right))
        coverage = find_coverage(
            survey.dataset, layout.steps, [stone.name for stone in survey.removals]
        )
    except (FileNotFoundError, DamagedFile):
        return  # a run is active, or a shard is not a file, which is reported elsewhere
    if not rest:
        return
    is_trusted = coverage is not None and coverage.live is None
    if is_trusted and not any(fault.remedies for fault in book.report.faults):
        # Shard files are only replaced by renaming, which changes the folder's time; these were
        # changed in place.
        book.stray(
            "index",
            f"{where}/{INDEX_MANIFEST}",
            "queries rely on it, but shards were changed in place since it was made",
        )
    elif not is_trusted:
        book.note(
            "index",
            where,
            "does not cover all shards; queries read the tables for the rest",
            f"`clipmill index {shell_word(book.dataset)}` rebuilds it",
            at_rest=True,
        )


def _check_parts(folder: Path, where: str, names: Sequence[str], book: Book) -> None:
    for name in names:
        try:
            with pq.ParquetFile(folder / name, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
        except FileNotFoundError:
            continue  # a run is rebuilding the index
        except (pa.ArrowException, OSError) as error:
            book.stray(
                "index",
                f"{where}/{name}",
                f"is damaged, and queries read it ({str(error).strip().splitlines()[0]})",
            )
        book.report.checked["index_files"] += 1

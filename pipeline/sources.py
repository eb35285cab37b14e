"""Ingest: the recipe's sources as rows of the `sources` table, in shards that are fixed once.

Every row of the input becomes a source to download, a rejection (a duplicate, a known id) or a
failure; a source that the dataset has already is left as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.expansion import Expander
from pipeline.platforms import identify, looks_like_url
from pipeline.shards import (
    ShardMetadata,
    committed_shards,
    remove_all_leftovers,
    shard_name,
    shard_path,
    shard_writer,
)
from pipeline.source_files import describe_passed_over
from pipeline.source_lists import read_list
from pipeline.source_rows import Reader, Source, list_of
from pipeline.source_spec import SourceSpec, source_from_argument
from pipeline.tombstones import removed_sources, removed_videos
from schemas.damage import reading
from schemas.errors import MAX_MESSAGE_CHARACTERS, UsageError
from schemas.ids import platform_video_id, source_key
from schemas.step_tables import EXPANDED_RULE, MENDED_RULE, REMOVED_RULE
from schemas.tables import SOURCES
from schemas.words import counted
from stages.models.fetching import local_file
from stages.models.references import DataFile

if TYPE_CHECKING:
    from stages.download_videos import DownloadVideos

__all__ = ["IngestReport", "SourceSpec", "ingest", "list_source_shards", "source_from_argument"]

_OF_FAILURES = ["source_key", "listed_in", "rejection", "error"]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest added; `known` sources were in the dataset before.

    Of the rejected, `ended` ones stand for an earlier failure that is none any more.
    """

    kept: int = 0
    rejected: int = 0
    failed: int = 0
    known: int = 0
    shards: tuple[str, ...] = ()
    over_limit: int = 0
    changed_spans: int = 0
    ended: int = 0
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for people."""
        if not self.shards:
            text = f"Sources: nothing new, {self.known} known"
        else:
            more = [f"{count} {word}" for count, word in (
                (self.rejected - self.ended, "rejected"), (self.failed, "failed"),
                (self.known, "known before"), (self.ended, "no failure any more"),
            ) if count]
            shards = counted(len(self.shards), "shard")
            text = f"Sources: {self.kept} new in {shards}" + "".join(f", {part}" for part in more)
        if self.over_limit:
            text += f"; {self.over_limit} left out by the limit"
        if self.changed_spans:
            text += (f"; {self.changed_spans} known sources were given other spans, which are not "
                     "taken (sources are fixed at their first ingest)")
        if passed_over := describe_passed_over(self.passed_over):
            text += f"; {passed_over}"
        return text + "."


def list_source_shards(dataset: Path) -> list[str]:
    """Names of the shards of sources, in order."""
    return committed_shards(dataset / "sources")


def ingest(
    dataset: Path,
    sources: Sequence[SourceSpec],
    *,
    shard_videos: int,
    exclude_ids: DataFile | Path | str | None = None,
    limit: int | None = None,
    base_folder: Path | None = None,
    downloads: DownloadVideos | None = None,
    take_suffixes: Collection[str] = (),
) -> IngestReport:
    """Adds to the dataset the sources that it does not have yet.

    Relative paths of `sources` are read from `base_folder`, those inside a list from the list's
    folder. `limit` bounds how many of the listed sources are taken, known ones included. What
    lists videos elsewhere is asked with the care that `downloads` is set to. Files of folders and
    patterns are taken where they look like videos or end in one of `take_suffixes`.
    Raises UsageError where an input can't be read or gives nothing.
    """
    folder = dataset / "sources"
    known, failures = _known_keys(folder)
    listing = _Listing(known, excluded_ids(exclude_ids), limit,
                       {**removed_sources(dataset), **removed_videos(dataset)})
    reader = Reader(base_folder or Path.cwd(), Expander(dataset, downloads),
                    lambda key: listing.known.get(key) == "failed", lambda: listing.full,
                    take_suffixes)
    read_wholly = set()
    for spec in sources:
        before = listing.rows
        for row in reader.rows(spec):
            listing.add(row)
        if listing.rows == before and not listing.full:
            raise UsageError(f"sources: {_name(spec)} gives no sources; "
                             f"{describe_passed_over(reader.finder.passed_over) or _hint(spec)}")
        if not (spec.search_file and listing.full):
            read_wholly.add(list_of(spec, base_folder or Path.cwd()))
    listing.end({key for key, listed_in in failures.items()
                 if listed_in is not None and listed_in in read_wholly})
    return replace(_write(folder, listing, shard_videos), passed_over=+reader.finder.passed_over)


def _name(spec: SourceSpec) -> str:
    return spec.path or spec.url or spec.search_file or f"search {spec.search}"


def _hint(spec: SourceSpec) -> str:
    if spec.path or spec.search_file:
        return "the list or folder is empty"
    return "nothing was found there"


class _Listing:
    """All that was listed, each source once, in the order in which it was first named."""

    def __init__(self, known: dict[str, str], excluded: set[str], limit: int | None,
                 removed: dict[str, str]) -> None:
        self.known = known
        self.rows = 0
        self.over_limit = 0
        self._excluded = excluded
        self._removed = removed
        self._limit = limit
        self._taken = 0
        self._by_key: dict[str, Source] = {}
        self._failing: set[str] = set()
        self._repeats: dict[str, int] = {}

    @property
    def full(self) -> bool:
        return self._limit is not None and self._taken >= self._limit

    def add(self, source: Source) -> None:
        self.rows += 1
        key = source_key(source.locator)
        if source.problem is not None:
            self._failing.add(key)
            # What had been mended is as before: the newest row counts.
            source.again = self.known.get(key) == "rejected"
        first = self._by_key.get(key)
        if first is not None:
            self._add_repeat(key, first, source)
        elif self.full:
            self.over_limit += 1
        else:
            if source.problem is None and source.rejection is None:
                source.rejection = (_removal(key, source, self._removed)
                                    or exclusion(source, self._excluded))
                fresh = "kept" if source.rejection is None else "rejected"
                self._taken += self.known.get(key, fresh) == "kept"
            self._by_key[key] = source

    def end(self, failures: Iterable[str]) -> None:
        """Of earlier failures of the lists that were read, ends those that are not there now."""
        for key in failures:
            if key not in self._failing and key not in self._by_key:
                self._by_key[key] = mended()

    def new(self) -> Iterator[tuple[str, Source]]:
        """Sources that the dataset does not have, with their keys."""
        for key, source in self._by_key.items():
            if key not in self.known or source.again:
                yield key, source

    def known_again(self) -> Iterator[tuple[str, Source]]:
        for key, source in self._by_key.items():
            if key in self.known and not source.again:
                yield key, source

    def _add_repeat(self, key: str, first: Source, source: Source) -> None:
        if source.spans and source.spans[0] not in (first.spans or []):
            first.spans = [*(first.spans or []), *source.spans]
            return
        # The repeat has a key of its own, the same each time the same list is read.
        number = self._repeats[key] = self._repeats.get(key, 0) + 1
        locator = f"{source.locator}\0repeat {number}"
        source.rejection = _removal(key, first, self._removed) or {
            "rule": "sources.duplicate",
            "detail": f"{source.place}: the same as {first.url or first.locator} "
                      f"({first.place}), key {key}",
        }
        self._by_key[source_key(locator)] = source


def _known_keys(folder: Path) -> tuple[dict[str, str], dict[str, str | None]]:
    """The keys that the dataset has, each with what became of it: kept, rejected or failed.

    And the lists that those stand in which are failed.
    """
    known: dict[str, str] = {}
    failures: dict[str, str | None] = {}
    for shard in committed_shards(folder):
        path = shard_path(folder, shard)
        with reading(path):
            # The schema gives shards of earlier releases the columns that they lack.
            table = pq.read_table(path, schema=SOURCES, columns=_OF_FAILURES)
        became = pc.if_else(pc.is_valid(table["error"]), "failed",
                            pc.if_else(pc.is_valid(table["rejection"]), "rejected", "kept"))
        keys = table["source_key"].to_pylist()
        known.update(zip(keys, became.to_pylist(), strict=True))
        _note_failures(table, failures)
    return known, failures


def standing_failures(folder: Path) -> dict[str, str | None]:
    """Keys of sources that are failures now, and the lists that they stand in."""
    found: dict[str, str | None] = {}
    for shard in committed_shards(folder):
        path = shard_path(folder, shard)
        with reading(path):
            _note_failures(pq.read_table(path, schema=SOURCES, columns=_OF_FAILURES), found)
    return found


def _note_failures(table: pa.Table, failures: dict[str, str | None]) -> None:
    """Brings standing failures up to the next shard's rows."""
    ended = pc.is_in(pc.struct_field(table["rejection"], "rule"),
                     pa.array([EXPANDED_RULE, MENDED_RULE]))
    rows = table.filter(pc.or_(pc.is_valid(table["error"]), ended))
    for row in rows.select(_OF_FAILURES).to_pylist():
        if row["error"] is not None:
            failures[row["source_key"]] = row["listed_in"]
        else:
            failures.pop(row["source_key"], None)


def mended() -> Source:
    """What ends an earlier failure, under its key: its list was read, and had no such row."""
    return Source("", again=True, rejection={
        "rule": MENDED_RULE, "detail": "the list no longer has this row as it was"})


def _removal(key: str, source: Source, removed: dict[str, str]) -> dict[str, str] | None:
    """The rejection of a source that was removed from the dataset, or whose video was."""
    names = [key, source.video_id]
    if source.extractor is not None and source.platform_id is not None:
        names.append(platform_video_id(source.extractor, source.platform_id))
    when = next((removed[name] for name in names if name in removed), None)
    return None if when is None else {"rule": REMOVED_RULE, "detail": when}


def exclusion(source: Source, excluded: set[str]) -> dict[str, str] | None:
    """The rejection of a source that one of the `excluded` names means."""
    names = {source.locator, source.url, source.video_id}
    if source.platform_id is not None:
        names |= {source.platform_id, f"{source.extractor} {source.platform_id}",
                  f"{source.extractor}-{source.platform_id}"}
    found = sorted(name for name in names & excluded if name is not None)
    if not found:
        return None
    return {"rule": "sources.exclude_ids", "detail": f"known id {found[0]}"}


def excluded_ids(given: DataFile | Path | str | None) -> set[str]:
    """Known ids: one a line, as bare ids, `<extractor>-<id>`, yt-dlp's archive lines or URLs."""
    if given is None:
        return set()
    path = local_file(given, setting="exclude_ids") if isinstance(given, DataFile) else Path(given)
    if not path.is_file():
        raise UsageError(f"exclude_ids: there is no file {path}")
    found = set()
    for row in read_list(path, None, ("video_id", "id", "youtubeid", "url")):
        text = row.locator or ""
        found.add(text)
        if looks_like_url(text):
            try:
                found.add(identify(text).locator)
            except ValueError as error:
                raise UsageError(f"exclude_ids: {row.place}: {text}: {error}") from error
    return found - {""}


def _write(folder: Path, listing: _Listing, shard_videos: int) -> IngestReport:
    """Commits the new sources as new shards, each with at most `shard_videos` to download."""
    shards = NewShards(folder)
    ended = 0
    for rows in _chunks(listing, shard_videos):
        shards.commit(sources_table(rows))
        ended += sum(source.rejection is not None and source.rejection["rule"] in
                     (EXPANDED_RULE, MENDED_RULE) for _, source in rows)
    known = list(listing.known_again())
    return IngestReport(**shards.totals, known=len(known), shards=tuple(shards.names),
                        over_limit=listing.over_limit, ended=ended,
                        changed_spans=_changed_spans(folder, known))


class NewShards:
    """Appends shards to a dataset's sources, and counts what became of their rows."""

    def __init__(self, folder: Path) -> None:
        self.names: list[str] = []
        self.totals = {"kept": 0, "rejected": 0, "failed": 0}
        self._folder = folder
        before = committed_shards(folder)
        remove_all_leftovers(folder)
        self._number = int(before[-1]) + 1 if before else 0
        self._position = _last_position(shard_path(folder, before[-1])) + 1 if before else 0

    def commit(self, table: pa.Table) -> None:
        """Commits rows of `sources` as the next shard; their `position` is set here."""
        name = shard_name(self._number)
        positions = pa.array(range(self._position, self._position + table.num_rows), pa.int64())
        place = table.schema.get_field_index("position")
        write_sources(self._folder, name, table.set_column(place, "position", positions))
        for outcome, count in _outcomes(table).items():
            self.totals[outcome] += count
        self.names.append(name)
        self._number += 1
        self._position += table.num_rows


def write_sources(folder: Path, name: str, table: pa.Table) -> None:
    """Commits one shard of sources; one that is there already is replaced as a whole."""
    counts = _outcomes(table)
    with shard_writer(shard_path(folder, name), SOURCES, clean=False) as writer:
        writer.write(table.select(SOURCES.names))
        writer.finish(ShardMetadata("sources", "sources", name, "", "", inputs=table.num_rows,
                                    outputs=counts["kept"], **counts))


def _outcomes(table: pa.Table) -> dict[str, int]:
    failed = table.num_rows - table["error"].null_count
    rejected = table.num_rows - table["rejection"].null_count
    return {"kept": table.num_rows - failed - rejected, "rejected": rejected, "failed": failed}


def _last_position(shard: Path) -> int:
    with reading(shard):
        return pc.max(pq.read_table(shard, columns=["position"])["position"]).as_py()


def _chunks(listing: _Listing, shard_videos: int) -> Iterator[list[tuple[str, Source]]]:
    rows: list[tuple[str, Source]] = []
    kept = 0
    for key, source in listing.new():
        is_kept = source.problem is None and source.rejection is None
        if is_kept and kept == shard_videos:
            yield rows
            rows, kept = [], 0
        rows.append((key, source))
        kept += is_kept
    if rows:
        yield rows


def sources_table(rows: Iterable[tuple[str, Source]]) -> pa.Table:
    """Sources with their keys as rows of the table; NewShards gives them their positions."""
    now = datetime.now(UTC)
    return pa.Table.from_pylist([_row(key, source, now) for key, source in rows], SOURCES)


def _row(key: str, source: Source, now: datetime) -> dict[str, Any]:
    if source.rejection is not None and source.rejection["rule"] == REMOVED_RULE:
        # What was removed leaves no more than its key.
        return {"source_key": key, "rejection": source.rejection}
    error = None
    if source.problem is not None:
        error = {"kind": source.problem.kind, "attempts": 1, "at": now,
                 "message": source.problem.message[:MAX_MESSAGE_CHARACTERS]}
    return {
        "source_key": key,
        "position": None,
        "url": source.url,
        "path": source.path,
        "extractor": source.extractor,
        "platform_id": source.platform_id,
        "video_id": source.video_id,
        "spans": in_order(source.spans),
        "title": source.title,
        "category": source.category,
        "language": source.language,
        "query": source.query,
        "caption": source.caption,
        "extra": source.extra,
        "listed_in": None if error is None else source.listed_in,
        "rejection": source.rejection,
        "error": error,
    }


def in_order(spans: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if spans is None:
        return None
    return sorted(spans, key=lambda span: (span["start_seconds"], span["end_seconds"],
                                           span["caption"] or ""))


def _changed_spans(folder: Path, known: list[tuple[str, Source]]) -> int:
    """How many known sources were listed with time stamps that are not the stored ones."""
    listed = {key: {(span["start_seconds"], span["end_seconds"]) for span in source.spans}
              for key, source in known if source.spans}
    if not listed:
        return 0
    stored: dict[str, set[tuple[float, float]]] = {}
    for shard in committed_shards(folder):
        path = shard_path(folder, shard)
        with reading(path):
            rows = pq.read_table(path, columns=["source_key", "spans"]).to_pylist()
        for row in rows:
            if row["source_key"] in listed:
                stored[row["source_key"]] = {(span["start_seconds"], span["end_seconds"])
                                             for span in row["spans"] or []}
    return sum(not spans <= stored.get(key, set()) for key, spans in listed.items())

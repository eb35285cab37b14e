"""Ingest: turns the recipe's sources into rows of the `sources` table, in fixed shards.

Every row of the input becomes a source to download, a rejection (a duplicate, a known id) or a
failure; a source that the dataset already has is left unchanged.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.pipeline.dataset.shards import committed_shards
from clipmill.pipeline.dataset.tombstones import removed_sources, removed_videos
from clipmill.pipeline.ingest.list_counts import ListCounts, keep_counts
from clipmill.pipeline.ingest.listed_rows import ListPart, Source
from clipmill.pipeline.ingest.locators import bare
from clipmill.pipeline.ingest.platforms import identify, looks_like_url
from clipmill.pipeline.ingest.playlists import Expander
from clipmill.pipeline.ingest.shard_sizes import FittedShards
from clipmill.pipeline.ingest.source_files import describe_passed_over
from clipmill.pipeline.ingest.source_gathering import Gathering
from clipmill.pipeline.ingest.source_lists import ListFile
from clipmill.pipeline.ingest.source_rows import Reader, list_of
from clipmill.pipeline.ingest.source_shards import (
    KEPT,
    KnownSources,
    NewShards,
    known_sources,
    states,
)
from clipmill.pipeline.ingest.source_spec import SourceSpec, source_from_argument
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.ids import platform_video_id, source_key
from clipmill.schemas.processors import usable_cpus
from clipmill.schemas.step_tables import REMOVED_RULE
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.media.fetch.exclusions import RULE as EXCLUDED_RULE
from clipmill.stages.media.fetch.exclusions import names_of, write_exclusions
from clipmill.stages.media.fetch.extractors import is_part
from clipmill.stages.references import DataFile

if TYPE_CHECKING:
    from clipmill.stages.download_videos import DownloadVideos

__all__ = ["IngestReport", "SourceSpec", "ingest", "list_source_shards", "source_from_argument"]


_NAMES = ("locator", "url", "extractor", "platform_id", "video_id")


def fixed_shards_note(
    dataset: Path, asked: int | None, setting: str = "shard_videos", *, by_hand: bool = False
) -> str | None:
    """The message if sources stay in their shards although another size is requested.

    If no run records a shard size, the message is only for a request made `by_hand`.
    """
    latest, there = latest_run(dataset), len(list_source_shards(dataset))
    recorded = latest["recipe"] if latest else {}
    before = recorded.get("shard_videos")
    if not there or asked in (None, before) or ("shard_videos" not in recorded and not by_hand):
        return None
    was = f" (was {before or 'not set'})" if "shard_videos" in recorded else ""
    return (
        f"{setting} is now {asked}{was}: it applies to new sources only, because "
        f"{counted(there, 'existing shard')} of sources can't be changed. For other shards, "
        "make another dataset."
    )


@dataclass(frozen=True)
class IngestReport:
    """What an ingest added; `known` sources were in the dataset before.

    `ended` counts the rejections that resolve an earlier failure, `gathered` the rows that added a
    span or a caption to a source of an earlier row.
    """

    kept: int = 0
    rejected: int = 0
    failed: int = 0
    known: int = 0
    shards: tuple[str, ...] = ()
    over_limit: int = 0
    changed_spans: int = 0
    ended: int = 0
    gathered: int = 0
    lists: tuple[ListCounts, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One readable line."""
        if not self.shards:
            text = f"Sources: nothing new, {self.known} known"
        else:
            more = [
                f"{count} {word}"
                for count, word in (
                    (self.rejected - self.ended, "rejected"),
                    (self.failed, "failed"),
                    (self.known, "already known"),
                    (self.ended, f"failure{'' if self.ended == 1 else 's'} resolved"),
                    (self.gathered, f"row{'' if self.gathered == 1 else 's'} gathered into them"),
                )
                if count
            ]
            shards = counted(len(self.shards), "shard")
            text = f"Sources: {self.kept} new in {shards}" + "".join(f", {part}" for part in more)
        if self.over_limit:
            text += f"; {self.over_limit} left out by the limit"
        if self.changed_spans:
            text += (
                f"; {self.changed_spans} known source"
                f"{' was' if self.changed_spans == 1 else 's were'} given other spans or "
                "captions, which are ignored (sources are fixed at their first ingest; the "
                "rejections sources.fixed name them)"
            )
        if passed_over := describe_passed_over(self.passed_over):
            text += f"; {passed_over}"
        return text + "."

    def describe_lists(self) -> str:
        """A line for each list: its lines, and the outcomes of its rows."""
        return "\n".join(counts.describe() for counts in self.lists)


def list_source_shards(dataset: Path) -> list[str]:
    """Names of the shards of sources, in order."""
    return committed_shards(dataset / SOURCES)


def ingest(
    dataset: Path,
    sources: Sequence[SourceSpec],
    *,
    shard_videos: int | FittedShards,
    exclude_ids: DataFile | Path | str | None = None,
    limit: int | None = None,
    base_folder: Path | None = None,
    downloads: DownloadVideos | None = None,
    for_lists: Mapping[str, Any] = {},
    take_suffixes: Collection[str] = (),
) -> IngestReport:
    """Adds the sources that the dataset does not have yet.

    Relative paths of `sources` are resolved against `base_folder`, those inside a list against the
    list's folder. `limit` bounds how many of the listed sources are taken, including known ones.
    Playlists and the like are requested with the settings of `downloads`. `for_lists` has
    settings for items that leave them open. Files of folders and patterns are taken if they look
    like videos or end in one of `take_suffixes`.
    Raises UsageError if an input can't be read or is empty.
    """
    folder, base = dataset / SOURCES, base_folder or Path.cwd()
    known = known_sources(folder)
    excluded = excluded_ids(exclude_ids)
    with Gathering(dataset, known) as gathering:
        listing = _Listing(dataset, gathering, known, excluded, limit)
        reader = Reader(
            base,
            Expander(dataset, downloads),
            lambda key: key in known.failures,
            lambda: listing.full,
            take_suffixes,
        )
        read_wholly = set()
        for given in sources:
            spec = _with_defaults(given, for_lists)
            before = listing.rows
            for one in reader.lists_of(spec):
                # A limit is about sources, in the order of their rows.
                for part in reader.rows(one) if limit is not None else reader.parts(one):
                    if isinstance(part, ListPart):
                        listing.add_part(part)
                    else:
                        listing.add(part)
                if not (one.search_file and listing.full):
                    read_wholly.add(list_of(one, base))
            if listing.rows == before and not listing.full:
                why = describe_passed_over(reader.finder.passed_over) or _hint(spec)
                raise UsageError(f"sources: {_name(spec)} gives no sources; {why}")
        ended = [
            key
            for key, listed_in in known.failures.items()
            if listed_in is not None
            and listed_in in read_wholly
            and key not in listing.failing_over_limit
        ]
        write_exclusions(dataset, excluded)
        with ThreadPoolExecutor(usable_cpus()) as writers, NewShards(folder, writers) as shards:
            for table in _shards_of(gathering.gathered(ended), shard_videos):
                shards.commit(table)
    lists = tuple(
        ListCounts.of(note, gathering.counts.get(number, {}))
        for number, note in enumerate(reader.lists)
    )
    keep_counts(dataset, lists)
    return IngestReport(
        **shards.totals,
        known=gathering.known,
        shards=tuple(shards.names),
        over_limit=listing.over_limit,
        changed_spans=gathering.fixed,
        ended=gathering.ended,
        gathered=gathering.gathered_rows,
        lists=lists,
        passed_over=+reader.finder.passed_over,
    )


def _with_defaults(spec: SourceSpec, for_lists: Mapping[str, Any]) -> SourceSpec:
    """The item with those settings that it leaves open; a list of terms has its own columns."""
    return spec.model_copy(
        update={
            name: value
            for name, value in for_lists.items()
            if getattr(spec, name) is None and (spec.path or name in ("encoding", "platform"))
        }
    )


def _name(spec: SourceSpec) -> str:
    return spec.path or spec.url or spec.search_file or f"search {spec.search}"


def _hint(spec: SourceSpec) -> str:
    if spec.path and glob.has_magic(spec.path) and not Path(spec.path).exists():
        return "no file matches"
    if spec.path or spec.search_file:
        return "the list or folder is empty"
    return "nothing was found there"


class _Listing:
    """Collects all listed rows, up to the limit, and rejects what must not come in."""

    def __init__(
        self,
        dataset: Path,
        gathering: Gathering,
        known: KnownSources,
        excluded: set[str],
        limit: int | None,
    ) -> None:
        self.rows = 0
        self.over_limit = 0
        self.failing_over_limit: set[str] = set()
        self._gathering = gathering
        self._excluded = excluded
        self._removed = {**removed_sources(dataset), **removed_videos(dataset)}
        self._limit = limit
        self._taken = 0
        # Only with a limit are the states of earlier sources needed here.
        self._seen: set[str] = set()
        self._became: dict[str, int] = (
            {}
            if limit is None
            else dict(
                zip(*(known.table[name].to_pylist() for name in ("key", "state")), strict=True)
            )
        )

    @property
    def full(self) -> bool:
        return self._limit is not None and self._taken >= self._limit

    def add(self, source: Source) -> None:
        self.rows += 1
        key = source_key(source.locator)
        if self.full and key not in self._seen:
            self.over_limit += 1
            self._gathering.count(source.row_of, "left out")
            if source.problem is not None:
                self.failing_over_limit.add(key)
            return
        self._judge(key, source)
        if self._limit is not None and key not in self._seen:
            self._seen.add(key)
            is_kept = source.problem is None and source.rejection is None
            self._taken += self._became.get(key, KEPT if is_kept else None) == KEPT
        self._gathering.add(key, source)

    def _judge(self, key: str, source: Source) -> None:
        """Rejects a source that was removed or is excluded."""
        if source.problem is None and source.rejection is None:
            source.rejection = _removal(key, source, self._removed) or exclusion(
                source, self._excluded
            )

    def add_part(self, part: ListPart) -> None:
        """Adds rows of a list, without a limit."""
        others = []
        if self._removed or self._excluded:
            part, refused = self._without_refused(part)
            others += refused
        for number, source in part.sources:
            key = source_key(source.locator)
            self._judge(key, source)
            others.append((number, key, source))
        self.rows += part.plain.num_rows + len(others)
        self._gathering.add_part(part, others)

    def _without_refused(self, part: ListPart) -> tuple[ListPart, list[tuple[int, str, Source]]]:
        """A part without the plain rows that are rejected, and these."""
        refused = []
        is_refused = np.zeros(part.plain.num_rows, bool)
        names = part.plain.select(["source_key", *_NAMES])
        for at, row in enumerate(names.to_pylist()):
            key = row.pop("source_key")
            source = Source("", **row)
            self._judge(key, source)
            if source.rejection is not None:
                is_refused[at] = True
                full = part.source(at)
                full.rejection = source.rejection
                refused.append((part.plain["number"][at].as_py(), key, full))
        if not refused:
            return part, refused
        return replace(part, plain=part.plain.filter(pa.array(~is_refused))), refused


def _removal(key: str, source: Source, removed: dict[str, str]) -> dict[str, str] | None:
    """The rejection of a source that was removed from the dataset, or whose video was."""
    if not removed:
        return None
    names = [key, source.video_id]
    if source.extractor is not None and source.platform_id is not None:
        names.append(platform_video_id(source.extractor, source.platform_id))
    when = next((removed[name] for name in names if name in removed), None)
    return None if when is None else {"rule": REMOVED_RULE, "detail": when}


def exclusion(source: Source, excluded: set[str]) -> dict[str, str] | None:
    """The rejection of a source that one of the `excluded` names refers to."""
    if not excluded:
        return None
    names = names_of(
        source.extractor, source.platform_id, source.locator, source.url, source.video_id
    )
    found = sorted(set(names) & excluded)
    return {"rule": EXCLUDED_RULE, "detail": f"known id {found[0]}"} if found else None


def excluded_ids(given: DataFile | Path | str | None) -> set[str]:
    """Known ids: one per line, as bare ids, `<extractor>-<id>`, yt-dlp's archive lines or URLs."""
    if given is None:
        return set()
    path = local_file(given, setting="exclude_ids") if isinstance(given, DataFile) else Path(given)
    if not path.is_file():
        raise UsageError(f"exclude_ids: no file {path}")
    found = set()
    for row in ListFile(path).read(("video_id", "id", "youtubeid", "url")):
        if row.problem is not None:
            raise UsageError(f"exclude_ids: {row.place}: {row.problem}")
        text = bare(row.locator or "")
        found.add(text)
        site, space, name = text.partition(" ")
        if space:  # a line of yt-dlp's archive, which has the site in lower case
            found.add(f"{site.lower()} {name.strip()}")
        if looks_like_url(text):
            try:
                identity = identify(text)
            except ValueError as error:
                raise UsageError(f"exclude_ids: {row.place}: {text}: {error}") from error
            found.add(identity.locator)
            if identity.platform_id is not None and not is_part(text):
                found.add(f"{identity.extractor} {identity.platform_id}")
    return found - {""}


def _bytes_on_disk(paths: Sequence[str | None]) -> int | None:
    """The size of all files; None if any source has none."""
    total = 0
    for path in paths:
        if path is None:
            return None
        with contextlib.suppress(OSError):  # a file that is gone by now
            total += Path(path).stat().st_size
    return total


def _shards_of(tables: Iterable[pa.Table], shard_videos: int | FittedShards) -> Iterator[pa.Table]:
    """The rows in shards, each with at most `shard_videos` to download."""
    if isinstance(shard_videos, FittedShards):
        rest, begun, paths = iter(tables), [], list[str | None]()
        while len(paths) < shard_videos.most and (one := next(rest, None)) is not None:
            begun.append(one)
            paths += one.filter(pc.equal(states(one), KEPT))["path"].to_pylist()
        tables = itertools.chain(begun, rest)
        shard_videos = shard_videos.videos(len(paths), _bytes_on_disk(paths))
    waiting: list[pa.Table] = []
    kept = 0
    for table in tables:
        is_kept = pc.equal(states(table), KEPT).to_numpy(zero_copy_only=False)
        counts = kept + np.cumsum(is_kept)
        first = 0
        # A shard ends before the source that would exceed its size.
        for at in np.flatnonzero(is_kept & (counts > 1) & ((counts - 1) % shard_videos == 0)):
            waiting.append(table.slice(first, int(at) - first))
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, first = [], int(at)
        waiting.append(table.slice(first))
        kept = int(counts[-1]) if len(counts) else kept
        kept = (kept - 1) % shard_videos + 1 if kept else 0
    if sum(table.num_rows for table in waiting):
        yield pa.concat_tables(waiting).combine_chunks()

"""Removes videos permanently from a dataset: tables of all fingerprints, media, notes, index.

The tombstone is written first (`pipeline/dataset/tombstones.py`) and is in force from then on; the
rest may be killed at any point and is repeated by the next `remove` or `run`. Only the groups of
shards that hold a removed video are rewritten, each file by renaming. A removed source keeps one
row, with its key and the rejection `removed`, so that it is accounted for and not added again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.damaged_files import damage_named
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.dataset.audit_records import forget_videos
from clipmill.pipeline.dataset.choices import forget_chosen
from clipmill.pipeline.dataset.crash_journal import read_journal
from clipmill.pipeline.dataset.fits import forget_in_fits
from clipmill.pipeline.dataset.run_logs import forget
from clipmill.pipeline.dataset.shards import (
    base_shard,
    committed_shards,
    shard_name,
    shard_path,
    table_folders,
    write_json,
)
from clipmill.pipeline.dataset.tombstones import Tombstone, tombstones, write_tombstone
from clipmill.pipeline.engine.retry import read_request
from clipmill.pipeline.ingest.playlists import read_list_entries
from clipmill.pipeline.removal.own_files import delete, own_files, size_of
from clipmill.pipeline.removal.removed_in_index import drop_from_index
from clipmill.pipeline.removal.rewriting import RemovalTargets, matching_rows, rewrite_shard
from clipmill.schemas import tables
from clipmill.schemas.damage import check_is_file, read_json, reading
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import (
    COMPARED,
    JOURNAL,
    LISTS,
    RETRIES,
    SOURCES,
    SUBSET_CLIPS,
    json_files,
    subset_records,
)
from clipmill.schemas.ids import platform_video_id, source_key
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.step_tables import StepTable, scan
from clipmill.stages.download_videos import VIDEOS

_NEAR = 3


@dataclass
class Found:
    """Videos to remove, with the keys of all their sources."""

    videos: dict[str, set[str]] = field(default_factory=dict)
    removed_before: set[str] = field(default_factory=set)


@dataclass
class Purged:
    """What was (or, in a dry run, would be) removed, in counts."""

    videos: int = 0
    sources: int = 0
    clips: int = 0
    rows: int = 0
    shards: int = 0
    files: int = 0
    bytes: int = 0
    referenced: int = 0
    left: dict[Path, str] = field(default_factory=dict)
    """Files that may belong to others, and where in the dataset they are named."""
    subsets: dict[str, int] = field(default_factory=dict)


def find(dataset: Path, videos: Iterable[str], uploaders: Iterable[str]) -> Found:
    """The matching videos; UsageError with similar names for those that the dataset lacks."""
    before = {video for stone in tombstones(dataset) for video in stone.videos}
    found = Found()
    with _Sources(dataset) as sources:
        for video in dict.fromkeys(videos):
            if sources.has("video_id", video):
                found.videos[video] = set()
            elif video in before:
                found.removed_before.add(video)
            else:
                raise UsageError(
                    f"--video {video}: the dataset has no such video; "
                    f"{sources.near('video_id', video)}"
                )
        for uploader in dict.fromkeys(uploaders):
            ids = sources.videos_of(uploader)
            if not ids:
                raise UsageError(
                    f"--uploader {uploader}: no video of the dataset is by this "
                    f"uploader; {sources.near('uploader', uploader)}"
                )
            found.videos.update((video, set()) for video in ids)
        for video, key in sources.keys_of(found.videos):
            found.videos[video].add(key)
    return found


class _Sources:
    """The rows, of every fingerprint, that link sources to videos; a context manager.

    A platform's id may identify a video before it is downloaded; a second source of the same video
    is identified by its rejection.
    """

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self._connection = duckdb.connect(":memory:")

    def __enter__(self) -> _Sources:
        self._connection.create_function("platform_video", platform_video_id, [str, str], str)
        parts = []
        if committed_shards(self._dataset / SOURCES):
            table = _step(self._dataset / SOURCES, tables.SOURCES)
            rows = scan(table, ["source_key", "video_id", "extractor", "platform_id", "rejection"])
            parts.append(
                "SELECT source_key, coalesce(video_id, CASE WHEN platform_id IS NOT NULL AND "
                "extractor IS NOT NULL THEN platform_video(extractor, platform_id) END) "
                f"AS video_id, NULL::VARCHAR AS uploader, rejection, _base FROM ({rows})"
            )
        for folder in table_folders(self._dataset):
            shards = committed_shards(folder)
            names = _columns(shard_path(folder, shards[0]))
            if "source_key" in names and "video_id" in names:
                rows = scan(
                    _step(folder, VIDEOS), ["source_key", "video_id", "uploader", "rejection"]
                )
                parts.append(
                    f"SELECT source_key, video_id, uploader, rejection, _base FROM ({rows})"
                )
        rows = " UNION ALL ".join(parts) or (
            "SELECT NULL::VARCHAR AS source_key, NULL::VARCHAR AS video_id, NULL::VARCHAR AS "
            "uploader, NULL::STRUCT(rule VARCHAR, detail VARCHAR) AS rejection, 0 AS _base "
            "WHERE false"
        )
        with damage_named(self._dataset):
            self._make_rows(rows)
        return self

    def _make_rows(self, rows: str) -> None:
        self._connection.execute(
            "CREATE TABLE rows AS SELECT source_key, coalesce(video_id, CASE rejection.rule "
            "WHEN 'download_videos.duplicate' THEN nullif(regexp_extract(rejection.detail, "
            "'^([^ ]+) is there already', 1), '') END) AS video_id, uploader, CASE rejection.rule "
            "WHEN 'sources.duplicate' THEN nullif(regexp_extract(rejection.detail, "
            f"'key ([0-9a-f]{{20}})$', 1), '') END AS same_as, _base FROM ({rows})"
        )

    def __exit__(self, *details: object) -> None:
        self._connection.close()

    def has(self, column: str, value: str) -> bool:
        return bool(self._ask(f"SELECT 1 FROM rows WHERE {column} = ? LIMIT 1", [value]))

    def videos_of(self, uploader: str) -> list[str]:
        return [
            video
            for (video,) in self._ask(
                "SELECT DISTINCT video_id FROM rows WHERE uploader = ? AND video_id IS NOT NULL "
                "ORDER BY ALL",
                [uploader],
            )
        ]

    def near(self, column: str, value: str) -> str:
        rows = self._ask(
            f"SELECT DISTINCT {column} AS name, jaro_winkler_similarity(lower({column}), lower(?)) "
            f"+ contains({column}, ?)::INT AS s FROM rows WHERE {column} IS NOT NULL "
            f"ORDER BY s DESC, name LIMIT {_NEAR}",
            [value, value],
        )
        what = "videos" if column == "video_id" else "uploaders"
        if not rows:
            return f"it has no {what} yet"
        return f"similar: {', '.join(name for name, _ in rows)}"

    def keys_of(self, videos: Iterable[str]) -> list[tuple[str, str]]:
        """Pairs of video and source key, repeats of the same source included."""
        self._connection.register("wanted", pa.table({"video_id": pa.array(videos, pa.string())}))
        return self._ask(
            "WITH direct AS (SELECT DISTINCT video_id, source_key FROM rows JOIN wanted "
            "USING (video_id)) FROM direct UNION SELECT d.video_id, r.source_key FROM rows AS r "
            "JOIN direct AS d ON r.same_as = d.source_key",
            [],
        )

    def bases_of(self, selection: RemovalTargets) -> list[int]:
        """The groups of shards that contain any of these videos or sources."""
        self._connection.register(
            "keys", pa.table({"source_key": pa.array(selection.source_keys, pa.string())})
        )
        self._connection.register(
            "ids", pa.table({"video_id": pa.array(selection.videos, pa.string())})
        )
        return [
            base
            for (base,) in self._ask(
                "SELECT DISTINCT _base FROM rows WHERE source_key IN (FROM keys) "
                "OR video_id IN (FROM ids) ORDER BY 1",
                [],
            )
        ]

    def _ask(self, query: str, parameters: list[str]) -> list[tuple[Any, ...]]:
        with damage_named(self._dataset):
            return self._connection.execute(query, parameters).fetchall()


def _step(folder: Path, schema: pa.Schema) -> StepTable:
    return StepTable(folder.name, folder.name, folder.name, "source_key", schema, str(folder))


def unfinished(dataset: Path) -> list[Tombstone]:
    return [stone for stone in tombstones(dataset) if stone.purged_at is None]


def left_notes(purged: Purged | None) -> list[str]:
    """The files that a removal must not delete, one sentence each."""
    return [
        f"Not deleted: {path}, the target of the link {place}. It is outside media/, or "
        "belongs to other videos too; delete it yourself if nothing else needs it."
        for path, place in ({} if purged is None else purged.left).items()
    ]


def finish_removals(dataset: Path) -> Purged | None:
    """Carries out pending removals; None if there are none.

    The caller holds the dataset's lock.
    """
    stones = unfinished(dataset)
    if not stones:
        return None
    videos: dict[str, set[str]] = {}
    for stone in stones:
        for video, keys in stone.videos.items():
            videos.setdefault(video, set()).update(keys)
    purged = purge(dataset, videos, when=stones[-1].at)
    # Before the tombstones are marked as done: nobody would check the index afterwards.
    drop_from_index(dataset, videos)
    now = datetime.now(UTC)
    for stone in stones:
        write_tombstone(dataset, replace(stone, purged_at=now))
    # After the tombstones are marked as done: the new index then needs no check for removed rows.
    update_index(dataset, keep_former=False)
    return purged


def purge(
    dataset: Path, videos: dict[str, set[str]], *, when: datetime, dry_run: bool = False
) -> Purged:
    """Removes the videos from tables, media and notes, or only counts what would be removed."""
    selection = RemovalTargets(
        frozenset(videos), frozenset().union(*videos.values()), f"{when:%Y-%m-%d %H:%M:%S} UTC"
    )
    done = Purged(videos=len(videos), sources=len(selection.source_keys))
    with _Sources(dataset) as sources:
        bases = {shard_name(base) for base in sources.bases_of(selection)}
    folders = [dataset / SOURCES, *_by_level(table_folders(dataset))]
    files = [
        (folder, shard)
        for folder in folders
        for shard in committed_shards(folder)
        if base_shard(shard) in bases
    ]
    paths = _media_paths(files, selection)
    clips: set[str] = set()
    for folder, shard in files:
        path = shard_path(folder, shard)
        rows, found = matching_rows(path, selection)
        clips |= found
        done.rows += rows
        if rows:
            done.shards += 1
            if not dry_run:
                rewrite_shard(path, selection)
    done.clips = len(clips)
    files_of_theirs = own_files(dataset, paths, selection)
    done.referenced, done.left = files_of_theirs.referenced, files_of_theirs.left
    for place in files_of_theirs.delete:
        done.files += 1
        done.bytes += size_of(place)
        if not dry_run:
            delete(place)
    if not dry_run:
        _clean_notes(dataset, selection)
        forget_in_fits(dataset)
        shutil.rmtree(dataset / COMPARED, ignore_errors=True)
    # Last, to include subsets that were frozen during the removal.
    done.subsets = subsets_with(dataset, selection.videos)
    return done


def _by_level(folders: Iterable[Path]) -> list[Path]:
    """Orders tables from sources to clips: none may lack rows that an earlier one still has."""
    levels = ("source_key", "video_id", "clip_id")

    def level(folder: Path) -> int:
        names = _columns(shard_path(folder, committed_shards(folder)[0]))
        return next((i for i, name in enumerate(levels) if name in names), len(levels))

    return sorted(folders, key=level)


def _columns(path: Path) -> list[str]:
    with reading(path):
        names: list[str] = pq.read_schema(path).names
        return names


def _media_paths(files: Iterable[tuple[Path, str]], selection: RemovalTargets) -> set[str]:
    """The paths of the removed videos in the tables of videos."""
    found: set[str] = set()
    for folder, shard in files:
        path = shard_path(folder, shard)
        with reading(path):
            file = pq.ParquetFile(path)
            if not {"source_key", "video_id", "path"} <= set(file.schema_arrow.names):
                continue
            rows = file.read(columns=["video_id", "path"])
        mask = pc.is_in(rows["video_id"], pa.array(selection.videos, pa.string()))
        found.update(path for path in rows.filter(mask)["path"].to_pylist() if path)
    return found


def _clean_notes(dataset: Path, selection: RemovalTargets) -> None:
    """Removes the keys from retry requests, journals, logs, audits, and stored listings."""
    forget(dataset, selection.has_key)
    for path in json_files(dataset / RETRIES):
        request = read_request(path)
        left = [
            {**one, "keys": [key for key in one["keys"] if not selection.has_key(key)]}
            for one in (request, *request.get("also", ()))
        ]
        if left != [request, *request.get("also", ())]:
            write_json(path, {**left[0], "also": left[1:]} if left[1:] else left[0])
    forget_chosen(dataset, selection.has_key)
    for path in json_files(dataset / JOURNAL):
        run_id, begun = read_journal(path)
        started = {key: n for key, n in begun.items() if not selection.has_key(key)}
        if len(started) != len(begun):
            write_json(path, {"run_id": run_id, "started": started})
    for path in json_files(dataset / LISTS):
        entries = read_list_entries(path)
        kept = [
            asdict(entry) for entry in entries if _key_of(entry.url) not in selection.source_keys
        ]
        if len(kept) != len(entries):
            write_json(path, {**read_json(path), "entries": kept})
    forget_videos(dataset, selection.videos)


def _key_of(url: str) -> str | None:
    from clipmill.pipeline.ingest.platforms import identify

    try:
        return source_key(identify(url).locator)
    except ValueError:
        return None


def subsets_with(dataset: Path, videos: Iterable[str]) -> dict[str, int]:
    """The frozen subsets with clips of these videos, and how many clips."""
    wanted = list(videos)
    found: Counter[str] = Counter()
    for path in subset_records(dataset):
        files = f"{escaped_for_glob(str(path.parent))}/{SUBSET_CLIPS}"
        if not any(path.parent.glob(SUBSET_CLIPS)):
            continue
        with damage_named(dataset), duckdb.connect(":memory:") as connection:
            for file in path.parent.glob(SUBSET_CLIPS):
                check_is_file(file)
            ((count,),) = connection.execute(
                f"SELECT count(*) FROM read_parquet({literal(files)}) WHERE video_id IN "
                "(SELECT unnest(?))",
                [wanted],
            ).fetchall()
        if count:
            found[path.parent.name] = count
    return dict(found)

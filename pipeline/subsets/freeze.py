"""Frozen subsets: lists of clips that can be cited, with everything needed to recreate them.

`DATASET/subsets/<name>/` appears by one rename, complete or not at all. It holds `subset.json` and
`clips-NNNNNN.parquet` with `clip_id, video_id, position`, in the order of the ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.dataset.tombstones import removed_videos
from clipmill.pipeline.subsets.candidates import (
    ALL,
    CANDIDATES,
    Candidates,
    committed,
    read_candidates,
)
from clipmill.pipeline.subsets.explain import (
    describe_recipe,
    published_beside,
    require_clips,
    resolve_scorers,
)
from clipmill.pipeline.subsets.rule_engine import RuleEngine, Size
from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import check_is_file, read_json, reading
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.file_locks import try_lock
from clipmill.schemas.folders import SUBSET_RECORD, SUBSETS, subset_lock, subset_records
from clipmill.schemas.sql_text import quoted
from clipmill.schemas.step_tables import StepTable, kept
from clipmill.schemas.words import counted, did_you_mean

FORMAT = 1
CLIPS_A_FILE = 1_000_000
CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
    ]
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")
_DIFFERENT = (
    ("hash", "different clips"),
    ("rules", "different rules"),
    ("seed", "a different seed"),
    ("scorers", "different scorers"),
)


@dataclass(frozen=True)
class FrozenSubset:
    """A frozen subset on disk."""

    name: str
    folder: Path
    info: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """Its clips, in the order of their ids."""
        return [self.folder / entry["name"] for entry in self.info["files"]]


def load_subset(dataset: Path, name: str) -> FrozenSubset:
    """A frozen subset by name; UsageError with similar names if there is none."""
    names = subset_names(dataset)
    if name not in names:
        known = (
            f"available: {', '.join(names)}"
            if names
            else (
                "`clipmill subset recipes` lists the ready-made ones, e.g. `clipmill subset create "
                f"{shell_word(dataset)} internvid-random`"
            )
        )
        raise UsageError(f"{dataset} has no subset {name!r}; {did_you_mean(name, names)}{known}")
    folder = dataset / SUBSETS / name
    path = folder / SUBSET_RECORD
    info = read_json(path)
    with reading(path):
        wanted = (
            "name",
            "created_at",
            "hash",
            "snapshot",
            "n_clips",
            "n_videos",
            "hours",
            "seed",
            "rules",
            "scorers",
            "catalog",
        )
        if lacking := [word for word in wanted if word not in info]:
            raise KeyError(", ".join(lacking))
        for entry in info["files"]:
            check_is_file(folder / entry["name"])
    return FrozenSubset(name, folder, info)


def subset_names(dataset: Path) -> list[str]:
    return sorted(path.parent.name for path in subset_records(dataset))


def check_name(name: str) -> str:
    """The name if it is safe as a folder name, otherwise UsageError."""
    if not _NAME.match(name):
        raise UsageError(
            f"--name {name!r}: a subset name has up to 80 letters, digits, dots, "
            "dashes and underscores, and starts with a letter or digit"
        )
    return name


def create_subset(
    catalog: Catalog,
    recipe: SubsetRecipe,
    *,
    name: str,
    code_version: str,
    on_step: Callable[[str], None] = lambda said: None,
) -> tuple[FrozenSubset, bool]:
    """Freezes a recipe's clips; False if the very same subset already existed.

    Raises UsageError if the name is taken by another subset, or no clip remains.
    """
    dataset = catalog.layout.dataset
    check_name(name)
    scorers = resolve_scorers(catalog, recipe)
    with _making(dataset, name) as folder:
        on_step("reading the clips")
        candidates = read_candidates(catalog, recipe, scorers)
        with RuleEngine(candidates) as engine:
            whole = engine.size(ALL)
            outcomes, last = [], ALL
            for outcome, _, target in engine.funnel(
                recipe.rules,
                lambda rule: on_step(f"rule {rule.number} of {len(recipe.rules)}: {rule.verb}"),
            ):
                outcomes.append(outcome)
                last = target
                if not outcome.after.clips:
                    require_clips(outcomes, whole, recipe, dataset)
            regained = engine.regained(recipe.rules, last)
        on_step("writing the clips")
        connection = catalog.connection
        connection.execute(
            "CREATE OR REPLACE TABLE work.chosen AS SELECT c.* FROM "
            f"{CANDIDATES} AS c SEMI JOIN {last} AS l ON c.rowid = l.id"
        )
        files, digest = _write_clips(connection, folder)
        size = outcomes[-1].after
        snapshot = snapshot_of(catalog, candidates, whole)
        funnel = [outcome.plain() for outcome in outcomes]
        info = {
            "format": FORMAT,
            "name": name,
            **describe_recipe(recipe, scorers),
            "created_at": datetime.now(UTC).isoformat(),
            "code_version": code_version,
            "n_clips": size.clips,
            "n_videos": size.videos,
            "hours": size.hours,
            "hash": digest,
            "snapshot": snapshot["id"],
            "rules": [rule.plain() for rule in recipe.rules],
            "funnel": funnel,
            "regained": regained and regained.plain(),
            "published": published_beside(recipe, funnel, whole.clips),
            "catalog": snapshot,
            "counts": _counts(catalog),
            "distributions": _distributions(connection, candidates.described),
            "recipe_files": [{"name": file, "text": text} for file, text in recipe.texts],
            "files": files,
        }
        place = dataset / SUBSETS / name
        if (place / SUBSET_RECORD).exists():
            return _same_or_refuse(load_subset(dataset, name), info), False
        write_json(folder / SUBSET_RECORD, info)
        _sync(folder)
        _check_none_was_removed(dataset, connection, name)
        folder.rename(place)
        _sync(place.parent)
    return FrozenSubset(name, place, info), True


def _check_none_was_removed(dataset: Path, connection: Any, name: str) -> None:
    """ClipmillError if a chosen video was removed meanwhile: a concurrent removal reports only
    subsets that already exist.
    """
    removed = list(removed_videos(dataset))
    (clips,) = connection.execute(
        "SELECT count(*) FROM work.chosen WHERE video_id IN (SELECT unnest(?::VARCHAR[]))",
        [removed],
    ).fetchone()
    if clips:
        raise ClipmillError(
            f"{counted(clips, 'clip')} of the subset {name!r} belong to videos "
            "that were removed from the dataset while it was being created; run "
            "the same command again, which leaves them out"
        )


def _same_or_refuse(there: FrozenSubset, made: Mapping[str, Any]) -> FrozenSubset:
    different = [said for key, said in _DIFFERENT if there.info[key] != made[key]]
    if different:
        raise UsageError(
            f"a subset {there.name!r} already exists, with {' and '.join(different)} "
            f"({counted(there.info['n_clips'], 'clip')}, made {there.info['created_at'][:16]}); "
            f"give this one another name with --name, or delete {there.folder} first"
        )
    return there


@contextlib.contextmanager
def _making(dataset: Path, name: str) -> Iterator[Path]:
    """A folder to write a subset in, which readers ignore; deleted at the end unless renamed."""
    place = dataset / SUBSETS
    try:
        place.mkdir(exist_ok=True)
        lock = subset_lock(dataset, name)
        lock.touch()
    except OSError as error:
        raise ClipmillError(f"cannot write to {place}: {error.strerror}") from error
    with open(lock, "a", encoding="utf-8") as file:
        if not try_lock(file):
            raise ClipmillError(
                f"another process is creating the subset {name!r} of {dataset}; "
                "wait until it is done"
            )
        for left in place.glob(f".{name}~*.tmp"):  # left by a killed command
            shutil.rmtree(left, ignore_errors=True)
        folder = place / f".{name}~{uuid.uuid4().hex[:8]}.tmp"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Makes what was created in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_clips(connection: Any, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Writes the chosen clips by id; returns the files, and the hash over the ids."""
    rows = connection.sql(
        "SELECT clip_id, video_id FROM work.chosen ORDER BY clip_id"
    ).to_arrow_reader(100_000)
    digest = hashlib.sha256()
    files: list[dict[str, Any]] = []
    n = 0
    writer: pq.ParquetWriter | None = None
    try:
        for batch in rows:
            digest.update(id_lines(batch.column(0)))
            positions = pa.array(np.arange(n, n + batch.num_rows))
            n += batch.num_rows
            table = pa.table([*batch.columns, positions], names=CLIPS_SCHEMA.names)
            table = table.cast(CLIPS_SCHEMA)
            while table.num_rows:
                if writer is None:
                    name = f"clips-{len(files):06d}.parquet"
                    writer = pq.ParquetWriter(folder / name, CLIPS_SCHEMA, compression="zstd")
                    files.append({"name": name, "clips": 0})
                part = table.slice(0, CLIPS_A_FILE - files[-1]["clips"])
                writer.write_table(part)
                files[-1]["clips"] += part.num_rows
                table = table.slice(part.num_rows)
                if files[-1]["clips"] == CLIPS_A_FILE:
                    writer.close()
                    writer = None
    finally:
        if writer is not None:
            writer.close()
    for entry in files:
        with open(folder / entry["name"], "rb") as file:
            os.fsync(file.fileno())
    return files, f"sha256:{digest.hexdigest()}"


def id_lines(ids: pa.Array) -> bytes:
    """The input of a subset's hash: each id with a line feed, without a Python object for each."""
    text = pa.large_string()
    joined = pc.binary_join_element_wise(ids.cast(text), pa.scalar("\n", text), pa.scalar("", text))
    offsets, data = joined.buffers()[1:]
    first, last = joined.offset, joined.offset + len(joined)
    places = memoryview(offsets).cast("q")
    return memoryview(data)[places[first] : places[last]].tobytes()


def snapshot_of(catalog: Catalog, candidates: Candidates, whole: Size) -> dict[str, Any]:
    """What the catalog held: per step its fingerprint, shards and kept rows; and the clips."""
    now = committed(catalog)
    record = catalog.layout.record
    made = fingerprints(record)
    steps = {}
    for step in catalog.layout.steps:
        shards = candidates.shards[step.step]
        steps[step.step] = {
            "fingerprint": made[step.step],
            "shards": len(shards),
            "rows": _kept_rows(catalog, step),
        }
    # Exclusive or doesn't depend on the order, and no clip occurs twice.
    (digest,) = catalog.connection.execute(
        f"SELECT coalesce(bit_xor(md5_number(clip_id)), 0) FROM {CANDIDATES}"
    ).fetchall()[0]
    seen = {
        "steps": {name: [step["fingerprint"], step["rows"]] for name, step in steps.items()},
        "clips": whole.clips,
        "digest": f"{int(digest):032x}",
    }
    text = json.dumps(seen, sort_keys=True)
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        "run_id": record["run_id"] if record else None,
        "recipe": record["recipe_name"] if record else None,
        "steps": steps,
        **whole.plain(),
        "clips_digest": seen["digest"],
        "written_meanwhile": now != candidates.shards,
    }


def _kept_rows(catalog: Catalog, step: StepTable) -> int:
    rows = kept(step, [step.key])
    (count,) = catalog.connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0]
    return int(count)


def _counts(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    """Clips, videos and hours by the video's language, category and licence."""
    names = {"language": "language", "category": "category", "licence": "license"}
    columns = ", ".join(f"{quoted(column)} AS {name}" for name, column in names.items())
    catalog.make_views("videos")
    connection = catalog.connection
    connection.execute(
        f"CREATE OR REPLACE TABLE work.by_video AS SELECT * FROM (SELECT video_id, "
        "count(*) AS clips, sum(ms) AS ms FROM work.chosen GROUP BY video_id) "
        f"LEFT JOIN (SELECT video_id, {columns} FROM videos) USING (video_id)"
    )
    counts = {}
    for name in names:
        rows = connection.execute(
            f"SELECT {name}, sum(clips), count(*), sum(ms) FROM work.by_video GROUP BY {name} "
            f"ORDER BY 2 DESC, {name} NULLS LAST"
        ).fetchall()
        counts[name] = [
            {name: value, **Size(int(clips), videos, int(ms)).plain()}
            for value, clips, videos, ms in rows
        ]
    return counts


def _distributions(connection: Any, described: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """For each numeric column of clips: how many clips have a value, and its quantiles."""
    shares = {
        "min": 0.0,
        "p05": 0.05,
        "p25": 0.25,
        "median": 0.5,
        "p75": 0.75,
        "p95": 0.95,
        "max": 1.0,
    }
    found = {}
    for name, column in {"duration_seconds": "(ms / 1000)", **described}.items():
        count, values = connection.execute(
            f"SELECT count({column}), quantile_disc(CAST({column} AS DOUBLE), "
            f"{list(shares.values())}) FROM work.chosen"
        ).fetchall()[0]
        if count:
            found[name] = {"clips": count, **dict(zip(shares, values, strict=True))}
    return found


def still_there(catalog: Catalog, subset: FrozenSubset) -> dict[str, Any]:
    """What has become of a subset's clips in the catalog since it was frozen."""
    ids = "(SELECT clip_id, video_id FROM subset_clips WHERE name = $name)"
    gone, removed = catalog.execute(
        f"SELECT count(*), count(*) FILTER (video_id IN (SELECT video_id FROM removed)) FROM {ids} "
        "ANTI JOIN clips USING (clip_id)",
        {"name": subset.name},
    ).fetchall()[0]
    now = fingerprints(catalog.layout.record)
    then = {name: step["fingerprint"] for name, step in subset.info["catalog"]["steps"].items()}
    return {
        "removed": removed,
        "not_in_catalog": gone - removed,
        "changed_steps": sorted(name for name in {*now, *then} if now.get(name) != then.get(name)),
    }

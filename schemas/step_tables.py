"""A step's table on disk, and SQL for its rows: all, the kept or the newest ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clipmill.schemas.damage import check_is_file
from clipmill.schemas.sql_text import duckdb_type, escaped_for_glob, literal, null, quoted

Columns = Sequence[tuple[str, pa.DataType]]
CLIP_ID_PATTERN = r"^(.*)-m?\d+-m?\d+$"


@dataclass(frozen=True)
class StepTable:
    """One step's table on disk, or an additional table of it.

    `folder` holds its shards, None if none is committed; `retries` are the retry shards among
    them, whose keys may be in several files. `shards` restricts the table to some of them.
    `removed` means that videos were removed from the dataset, whose rows must be hidden. `odd` is
    a path that has a shard's name but isn't a file: DuckDB would skip a folder, and block on a
    named pipe. `role` is the built-in stage that it stands for in the views: its own, or that with
    the name and some columns of a custom one, which `lacks` the others.
    """

    step: str
    stage: str
    name: str
    key: str
    schema: pa.Schema
    folder: str | None
    retries: tuple[str, ...] = ()
    score: str | None = None
    shards: tuple[str, ...] | None = None
    removed: bool = False
    odd: Path | None = None
    is_built_in: bool = False
    role: str | None = None
    lacks: frozenset[str] = frozenset()

    @property
    def retried(self) -> bool:
        return bool(self.retries)

    @property
    def own_columns(self) -> list[pa.Field]:
        others = {self.key, "rejection", "error", *self.lacks}
        return [field for field in self.schema if field.name not in others]

    @property
    def is_primary(self) -> bool:
        """Whether its label is its stage's name; other labels are for a second scorer, say."""
        return self.stage == self.name or self.name == self.step


def empty(columns: Columns) -> str:
    """A relation of no rows with these columns."""
    picked = ", ".join(f"{null(kind)} AS {quoted(name)}" for name, kind in columns)
    return f"SELECT {picked} WHERE false"


def scan(table: StepTable, names: Iterable[str], *, retries_only: bool = False) -> str:
    """These columns of all rows of a table, with `_base` and `_retry` of their shard.

    The schema is given explicitly, so no file is opened before it is needed, and a column that an
    older file lacks is null. Rows of removed videos are left out.
    """
    columns = [(name, table.schema.field(name).type) for name in dict.fromkeys(names)]
    files = _files(table, retries_only)
    if not files:
        return empty((*columns, ("_base", pa.int64()), ("_retry", pa.int32())))
    needed, condition = _not_removed(table)
    read = {**dict(columns), **{name: table.schema.field(name).type for name in needed}}
    entries = ", ".join(
        f"{literal(name)}: {{name: {literal(name)}, type: {literal(duckdb_type(kind))}, "
        "default_value: NULL}"
        for name, kind in read.items()
    )
    # If a file lacks a struct's member or orders them otherwise, DuckDB 2.0 reads the wrong one or
    # crashes when it reads a single member; coalesce makes it read the whole struct and cast it by
    # name.
    picked = ", ".join(
        f"coalesce({quoted(name)}, NULL) AS {quoted(name)}"
        if pa.types.is_struct(kind)
        else quoted(name)
        for name, kind in columns
    )
    shard = "parse_filename(filename, true)"
    return (
        f"SELECT {picked}, CAST(split_part({shard}, '.', 1) AS BIGINT) AS _base, "
        rf"coalesce(TRY_CAST(regexp_extract({shard}, '\.retry(\d+)$', 1) AS INTEGER), 0) AS _retry "
        f"FROM read_parquet({files}, schema=MAP {{{entries}}}, "
        f"hive_partitioning=false){condition}"
    )


def _files(table: StepTable, retries_only: bool) -> str | None:
    """The files to read, as read_parquet takes them; None if there are none."""
    names = table.retries if retries_only else table.shards
    if names is None and table.odd is not None:
        check_is_file(table.odd)
    if table.folder is None:
        return None
    folder = escaped_for_glob(table.folder)
    if names is None:
        # A shard's name begins with a digit, a temporary file's with a dot.
        return literal(f"{folder}/[0-9]*.parquet")
    return (
        "[" + ", ".join(literal(f"{folder}/{name}.parquet") for name in names) + "]"
        if names
        else None
    )


def _not_removed(table: StepTable) -> tuple[list[str], str]:
    """Columns needed to leave out removed videos, and the condition.

    The one remaining row of a removed source is included: it is a rejection with only its key, and
    keeps the source accounted for.
    """
    if not table.removed:
        return [], ""
    names = table.schema.names
    needed: list[str] = []
    conditions: list[str] = []
    if "video_id" in names:
        needed.append("video_id")
        conditions.append(f"coalesce(video_id {NOT_AMONG_REMOVED}, true)")
    elif "clip_id" in names:
        needed.append("clip_id")
        video = f"regexp_extract(clip_id, {literal(CLIP_ID_PATTERN)}, 1)"
        conditions.append(f"{video} {NOT_AMONG_REMOVED}")
    if "source_key" in names:
        needed += ["source_key", "rejection"]
        conditions.append(
            "(source_key NOT IN (SELECT source_key FROM internal.removed_sources) "
            f"OR coalesce(coalesce(rejection, NULL).rule = {literal(REMOVED_RULE)}, false))"
        )
    return needed, " WHERE " + " AND ".join(conditions) if conditions else ""


NOT_AMONG_REMOVED = "NOT IN (SELECT video_id FROM main.removed)"
REMOVED_RULE = "removed"
SKIPPED_RULE = "skipped"
"""The rule of rows that a step was not asked to do: a gate, or the run's choice, left them out."""
NOT_ASKED = "not asked for"
"""How the detail of a row begins that the run's choice left out; a gate's begins with `where`."""
EXPANDED_RULE = "sources.expanded"
MENDED_RULE = "sources.mended"
"""Rules with which a later ingest marks a failed row of sources as resolved."""
_OUTCOME = ("rejection", "error")


def _kept_rows(table: StepTable, columns: Iterable[str]) -> str:
    return (
        f"SELECT * FROM ({scan(table, [*columns, *_OUTCOME])}) "
        "WHERE rejection IS NULL AND error IS NULL"
    )


def newest(table: StepTable, columns: Iterable[str], kept_only: bool) -> str:
    columns = list(dict.fromkeys(columns))
    picked = ", ".join(["_base", "_retry", *map(quoted, columns)])
    rows = _kept_rows(table, columns) if kept_only else scan(table, columns)
    if not table.retried:
        return f"SELECT {picked} FROM ({rows}) WHERE _retry = 0"
    key = quoted(table.key)
    again = scan(table, [table.key, *(_OUTCOME if kept_only else ())], retries_only=True)
    condition = "rejection IS NULL AND error IS NULL" if kept_only else "true"
    # There are few retries: only their keys are hashed, and the first shards stream past them. A
    # retry committed after the table was listed is not among them: its rows are left out, as
    # above.
    return (
        f"SELECT {picked} FROM ({rows}) LEFT JOIN (SELECT {key} AS _key, _base AS _group, "
        f"max(_retry) AS _last FROM ({again}) WHERE {condition} GROUP BY ALL) "
        f"ON {key} = _key AND _base = _group WHERE _retry = coalesce(_last, 0)"
    )


def kept(table: StepTable, columns: Iterable[str]) -> str:
    """The kept rows; if a key was kept in several shards, the newest ones.

    `columns` must include the key; `_base` and `_retry` of the shard are added.
    """
    return newest(table, columns, kept_only=True)


def many_rows_a_key(table: StepTable) -> bool:
    """Whether a key can have several rows, like a video's clips."""
    return table.key != "clip_id" and "clip_id" in table.schema.names


def outcomes(table: StepTable) -> str:
    """`key, outcome, _base, _retry`: the outcome of each key, and its shard.

    An outcome is `kept`, `rejected`, `failed` or `skipped`. Within a shard, a key with a failed row
    is failed, otherwise one with a kept row is kept. A key that any shard kept stays kept: a failed
    retry (with a new input) removes nothing. For all others the newest shard counts.
    """
    if not table.retried:
        rows = _states(table, newest(table, [table.key, *_OUTCOME], kept_only=False))
        if not is_ingest(table):
            return rows
        return (
            f"SELECT key, outcome, _base, _retry FROM ({rows}) LEFT JOIN "
            f"({again_at_ingest(table)}) USING (key) WHERE _base = coalesce(newest, _base)"
        )
    key = quoted(table.key)
    once = (
        f"SELECT * FROM ({scan(table, [table.key, *_OUTCOME])}) ANTI JOIN ({_retried(table)}) "
        f"ON {key} = _key AND _base = _group WHERE _retry = 0"
    )
    return f"{_states(table, once)} UNION ALL {retried_outcomes(table)}"


def is_ingest(table: StepTable) -> bool:
    return table.name == "ingest" and "listed_in" in table.schema.names


def again_at_ingest(table: StepTable) -> str:
    """`key, newest`: keys of failures that an ingest resolved, and their last shard.

    A row may come again with the same key: it failed, was fixed, and failed again.
    """
    rules = ", ".join(map(literal, (EXPANDED_RULE, MENDED_RULE)))
    key = quoted(table.key)
    ended = (
        f"SELECT {key} FROM ({scan(table, [table.key, 'rejection'])}) "
        f"WHERE rejection.rule IN ({rules})"
    )
    return (
        f"SELECT {key} AS key, max(_base) AS newest FROM ({scan(table, [table.key])}) "
        f"WHERE {key} IN ({ended}) GROUP BY ALL"
    )


def retried_outcomes(table: StepTable) -> str:
    """The `outcomes` of keys that are in a retry."""
    key = quoted(table.key)
    rows = (
        f"SELECT * FROM ({scan(table, [table.key, *_OUTCOME])}) SEMI JOIN ({_retried(table)}) "
        f"ON {key} = _key AND _base = _group"
    )
    return (
        f"SELECT key, outcome, _base, _retry FROM ({_states(table, rows)}) "
        "QUALIFY row_number() OVER (PARTITION BY key, _base "
        "ORDER BY outcome = 'kept' DESC, _retry DESC) = 1"
    )


def _retried(table: StepTable) -> str:
    return (
        f"SELECT DISTINCT {quoted(table.key)} AS _key, _base AS _group FROM "
        f"({scan(table, [table.key], retries_only=True)})"
    )


def _states(table: StepTable, rows: str) -> str:
    """A shard's outcome for each of its keys."""
    state = (
        "CASE WHEN error IS NOT NULL THEN 'failed' WHEN rejection IS NULL THEN 'kept' "
        f"WHEN rejection.rule = {literal(SKIPPED_RULE)} THEN 'skipped' ELSE 'rejected' END"
    )
    found = f"SELECT {quoted(table.key)} AS key, {state} AS outcome, _base, _retry FROM ({rows})"
    if not many_rows_a_key(table):
        return found
    # One row per clip; 'failed' < 'kept' < 'rejected' < 'skipped' is the order of precedence.
    return f"SELECT key, min(outcome) AS outcome, _base, _retry FROM ({found}) GROUP BY ALL"


SHARD = "printf('%06d', _base) || if(_retry > 0, '.retry' || _retry, '') AS shard"


def raw_view(table: StepTable) -> str:
    """Every row of a step, kept or not, with its shard."""
    names = table.schema.names
    picked = ", ".join(map(quoted, names))
    return f"SELECT {picked}, {SHARD} FROM ({scan(table, names)})"

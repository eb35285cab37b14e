"""SQL of the views of rows not kept: rejections, failures, skipped rows, failed parts of kept rows.

Their columns are in `pipeline/catalog/views.py` with those of all views.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from clipmill.pipeline.catalog.views import primary
from clipmill.schemas import tables
from clipmill.schemas.sql_text import literal, null, quoted
from clipmill.schemas.step_tables import (
    CLIP_ID_PATTERN,
    SHARD,
    SKIPPED_RULE,
    Columns,
    StepTable,
    again_at_ingest,
    empty,
    is_ingest,
    kept,
    many_rows_a_key,
    outcomes,
    retried_outcomes,
    scan,
)


def _problems(table: StepTable) -> str:
    """Rows of a step that were not kept; `resolved` if a newer shard has the key again.

    A failure is resolved by any newer outcome that is not a failure; a rejection by any newer
    outcome, or by another kept row; and both if another shard kept the key (see `outcomes`). At
    ingest, any later shard with the key resolves both.
    """
    key = quoted(table.key)
    columns = [table.key, "rejection", "error"]
    if table.key == "clip_id":
        video = f"nullif(regexp_extract(p.clip_id, {literal(CLIP_ID_PATTERN)}, 1), '')"
    elif "video_id" in table.schema.names:
        video = "p.video_id"
        columns.append("video_id")
    else:
        video = null(pa.string())
    resolved, join = "false", ""
    if table.retried:
        resolved = (
            "coalesce(if(error IS NULL, _last, _last_done) > _retry, false) "
            "OR coalesce(_kept_in <> _retry, false)"
        )
        join = (
            f" LEFT JOIN (SELECT {key} AS _key, _base AS _group, max(_retry) AS _last, "
            "max(_retry) FILTER (error IS NULL) AS _last_done "
            f"FROM ({scan(table, [table.key, 'error'], retries_only=True)}) GROUP BY ALL) "
            f"ON _key = p.{key} AND _group = p._base"
            " LEFT JOIN (SELECT key AS _kept, _base AS _kept_base, _retry AS _kept_in "
            f"FROM ({retried_outcomes(table)}) WHERE outcome = 'kept') "
            f"ON _kept = p.{key} AND _kept_base = p._base"
        )
    if is_ingest(table):
        resolved = "coalesce(newest > p._base, false)"
        join = f" LEFT JOIN ({again_at_ingest(table)}) AS again ON again.key = p.{key}"
    if many_rows_a_key(table):
        resolved = f"({resolved}) OR (error IS NULL AND _other IS NOT NULL)"
        join += (
            f" LEFT JOIN (SELECT key AS _other, _base AS _b, _retry AS _r FROM ({outcomes(table)}) "
            f"WHERE outcome NOT IN ('rejected', 'skipped')) ON _other = p.{key} "
            "AND _b = p._base AND _r = p._retry"
        )
    source = f"p.{key}" if table.key == "source_key" else null(pa.string())
    return (
        f"SELECT {literal(table.stage)} AS stage, p.{key} AS key, {source} AS source_key, "
        f"{video} AS video_id, rejection, error, {resolved} AS resolved, {SHARD} "
        f"FROM ({scan(table, columns)}) AS p{join} "
        "WHERE rejection IS NOT NULL OR error IS NOT NULL"
    )


def _failed_parts(table: StepTable) -> str:
    """The missing parts of a step's kept rows as failures, in the columns of `_problems`."""
    key = quoted(table.key)
    read = [table.key, "video_id", "failed_parts", "rejection", "error"]
    rows = (
        f"SELECT {key}, video_id, unnest(failed_parts) AS part, _base, _retry FROM "
        f"({scan(table, read)}) WHERE error IS NULL AND rejection IS NULL "
        "AND len(failed_parts) > 0"
    )
    resolved, join = "false", ""
    if table.retried:
        resolved = "coalesce(_last > p._retry, false)"
        join = (
            f" LEFT JOIN (SELECT {key} AS _key, _base AS _group, max(_retry) AS _last FROM "
            f"({scan(table, [table.key], retries_only=True)}) GROUP BY ALL) "
            f"ON _key = p.{key} AND _group = p._base"
        )
    source = f"p.{key}" if table.key == "source_key" else null(pa.string())
    error = (
        "{'kind': part.kind, 'message': part.message, 'attempts': part.attempts, 'at': part.\"at\"}"
    )
    return (
        f"SELECT {literal(table.stage + '.')} || part.part AS stage, p.{key} AS key, "
        f"{source} AS source_key, p.video_id, {null(tables.REJECTION)} AS rejection, "
        f"{error} AS error, {resolved} AS resolved, {SHARD} FROM ({rows}) AS p{join}"
    )


def problems_view(steps: Sequence[StepTable]) -> str:
    """All rows that were not kept, at every step, with the address of their source."""
    download = primary(steps, "download_videos")
    videos = empty((("video_id", pa.string()), ("url", pa.string())))
    if download is not None:
        videos = kept(download, ["source_key", "video_id", "url"])
    parts = [
        *map(_problems, steps),
        *(_failed_parts(table) for table in steps if "failed_parts" in table.schema.names),
    ]
    return (
        "SELECT p.stage, p.key, p.rejection, p.error, p.resolved, coalesce(s.url, v.url) AS url, "
        f"p.video_id, p.shard FROM ({' UNION ALL '.join(parts)}) AS p "
        "LEFT JOIN (SELECT source_key, any_value(url) AS url FROM sources GROUP BY ALL) AS s "
        "ON s.source_key = p.source_key "
        f"LEFT JOIN (SELECT video_id, any_value(url) AS url FROM ({videos}) GROUP BY ALL) AS v "
        "ON v.video_id = p.video_id"
    )


PROBLEMS: Columns = (
    ("stage", pa.string()),
    ("key", pa.string()),
    ("rejection", tables.REJECTION),
    ("error", tables.ERROR),
    ("resolved", pa.bool_()),
    ("url", pa.string()),
    ("video_id", pa.string()),
    ("shard", pa.string()),
)
"""The columns of `problems_view`."""


def _by_rule(compared: str) -> str:
    return (
        "SELECT stage, key, rejection.rule AS rule, rejection.detail AS detail, url, video_id, "
        "shard FROM internal.problems WHERE error IS NULL AND NOT resolved AND "
        f"rejection.rule {compared} {literal(SKIPPED_RULE)} "
        "QUALIFY row_number() OVER (PARTITION BY stage, key ORDER BY shard DESC) = 1"
    )


_REJECTIONS_SQL = _by_rule("IS DISTINCT FROM")
_SKIPPED_SQL = _by_rule("IS NOT DISTINCT FROM")
_FAILURES_ALL_SQL = (
    "SELECT stage, key, error.kind AS kind, error.message AS message, "
    'error.attempts AS attempts, error."at" AS "at", url, video_id, shard, resolved '
    "FROM internal.problems WHERE error IS NOT NULL"
)
_FAILURES_SQL = (
    "SELECT * EXCLUDE (resolved) FROM (SELECT *, first_value(message) OVER first AS first_message, "
    'first_value("at") OVER first AS first_at FROM failures_all '
    'WINDOW first AS (PARTITION BY stage, key ORDER BY "at" NULLS FIRST, shard)) '
    "WHERE NOT resolved QUALIFY row_number() OVER "
    '(PARTITION BY stage, key ORDER BY "at" DESC NULLS LAST, shard DESC) = 1'
)
OF_PROBLEMS = {
    "rejections": _REJECTIONS_SQL,
    "skipped": _SKIPPED_SQL,
    "failures_all": _FAILURES_ALL_SQL,
    "failures": _FAILURES_SQL,
}
"""The views of `internal.problems`; one that uses another follows it."""


def create(connection: duckdb.DuckDBPyConnection, problems: str) -> None:
    """Makes `internal.problems` from its query, and the views of it.

    They are bound to an empty one first: binding lists the folders of all steps, once for each view
    that uses it.
    """
    connection.execute(f"CREATE VIEW internal.problems AS {empty(PROBLEMS)}")
    try:
        for name, query in OF_PROBLEMS.items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
        connection.execute(f"CREATE OR REPLACE VIEW internal.problems AS {problems}")
    except BaseException:
        for name in ("internal.problems", *OF_PROBLEMS):
            connection.execute(f"DROP VIEW IF EXISTS {name}")
        raise

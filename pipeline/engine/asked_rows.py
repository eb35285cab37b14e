"""Finds the rows of all shards that a run is asked for, in one query per step.

`asked.py` tells it for one shard at a time. Here, DuckDB decides all rows but those clips that may
be made from a chosen span of their source.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from clipmill.pipeline.dataset.shards import committed_shards, retry_number, shard_name
from clipmill.pipeline.engine.asked import Asked
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.sql_text import escaped_for_glob, literal, quoted
from clipmill.schemas.step_tables import StepTable, scan


def table_of(step: PlannedStep, dataset: Path) -> StepTable:
    """A planned step's table; without a folder if no shard is committed."""
    folder = step.folder(dataset)
    shards = committed_shards(folder)
    return StepTable(
        step.label,
        step.stage_label,
        step.name,
        step.key,
        step.stage.table_schema,
        str(folder) if shards else None,
        tuple(name for name in shards if retry_number(name)),
    )


def asked_keys(
    connection: duckdb.DuckDBPyConnection, asked: Asked, step: PlannedStep, rows: str
) -> dict[str, set[str]]:
    """By base shard, those keys of `rows` (`key, base`, as SQL) of a step that are asked for.

    A connection keeps what steps have made of what, so use one while no shard is committed.
    """
    connection.execute(f"CREATE OR REPLACE TEMP TABLE given_rows AS {rows}")
    if not connection.execute("SELECT count(*) FROM given_rows").fetchall()[0][0]:
        return {}
    certain = _with_certainty(connection, asked, step, "FROM given_rows")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE asked_rows AS {certain}")
    first = set(asked.shards.first)
    found: dict[str, set[str]] = {}
    for is_certain in (True, False):
        groups = connection.execute(
            "SELECT base, list(key) FROM asked_rows WHERE certain = ? GROUP BY base ORDER BY base",
            [is_certain],
        )
        for number, keys in groups.fetchall():
            if (base := shard_name(number)) in first:
                mine = set(keys) if is_certain else asked.keys(step, base, keys)
                found.setdefault(base, set()).update(mine)
    return found


def _with_certainty(
    connection: duckdb.DuckDBPyConnection, asked: Asked, step: PlannedStep, rows: str
) -> str:
    """Those of `rows` that may be asked for, and whether that is `certain`."""
    plan, dataset, choice = asked.plan, asked.dataset, asked.choice
    if choice is None:
        return f"SELECT key, base, true AS certain FROM ({rows})"
    nothing = f"SELECT key, base, true AS certain FROM ({rows}) WHERE false"
    path = escaped_for_glob(str(choice.path))
    chosen = (
        "SELECT CAST(shard AS BIGINT) AS base, source_key, clip_id, span "
        f"FROM read_parquet({literal(path)})"
    )
    if step.key == "source_key":
        return (
            f"SELECT key, base, true AS certain FROM ({rows}) AS r SEMI JOIN ({chosen}) AS c "
            "ON c.base = r.base AND c.source_key = r.key"
        )
    makers = [s for s in plan.steps if s.key == "source_key" and "video_id" in s.columns]
    if not makers:
        return nothing
    videos = " UNION ALL ".join(_kept_pairs(connection, one, dataset, "video_id") for one in makers)
    if step.key == "video_id":
        return (
            f"SELECT key, base, true AS certain FROM ({rows}) AS r SEMI JOIN "
            f"(SELECT v.made, v.base FROM ({videos}) AS v JOIN ({chosen}) AS c "
            "ON c.base = v.base AND c.source_key = v.key) AS w "
            "ON w.made = r.key AND w.base = r.base"
        )
    maker = next((s for s in plan.steps if "clip_id" in s.columns and s.key != "clip_id"), None)
    if maker is None:
        return nothing
    # Two joins: one with an OR would pair each clip with all chosen ones of its source.
    pairs = _kept_pairs(connection, maker, dataset, "clip_id")
    return (
        f"WITH r AS ({rows}), c AS MATERIALIZED ({chosen}), v AS ({videos}), "
        f"m AS ({pairs}), "
        "named AS (SELECT r.key, r.base, c.source_key FROM r JOIN c "
        "ON c.base = r.base AND c.clip_id = r.key), "
        "whole AS (SELECT DISTINCT v.made, v.base, c.clip_id IS NULL AS certain FROM v JOIN c "
        "ON c.base = v.base AND c.source_key = v.key "
        "WHERE c.clip_id IS NULL OR c.span IS NOT NULL) "
        "SELECT key, base, bool_or(certain) AS certain FROM ("
        "SELECT n.key, n.base, true AS certain FROM named AS n "
        "JOIN m ON m.made = n.key AND m.base = n.base "
        "JOIN v ON v.made = m.key AND v.base = n.base AND v.key = n.source_key "
        "UNION ALL SELECT r.key, r.base, w.certain FROM whole AS w "
        "JOIN m ON m.key = w.made AND m.base = w.base "
        "JOIN r ON r.key = m.made AND r.base = m.base) GROUP BY ALL"
    )


def _kept_pairs(
    connection: duckdb.DuckDBPyConnection, step: PlannedStep, dataset: Path, made: str
) -> str:
    """`key, made, base` of rows that a step has kept at any time: what was made of what."""
    rows = scan(table_of(step, dataset), [step.key, made, "rejection", "error"])
    name = quoted(f"{made} by {step.label}")
    # Opening thousands of shards takes longer than joining their rows.
    connection.execute(
        f"CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT {quoted(step.key)} AS key, "
        f"{quoted(made)} AS made, _base AS base FROM ({rows}) "
        "WHERE rejection IS NULL AND error IS NULL"
    )
    return f"FROM {name}"

"""Lets rows in that earlier runs were not asked for: small new shards, as for a retry.

Committed shards stay as they are. All that is new in a group of shards is one request, which may
begin at several steps: a step that reads the results of two of them gets each row once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.compute as pc

from clipmill.pipeline.dataset.shards import shard_name, shard_path
from clipmill.pipeline.engine.asked import Asked, ShardSources, spans_before, spans_column
from clipmill.pipeline.engine.asked_rows import asked_keys, table_of
from clipmill.pipeline.engine.retry import Requests
from clipmill.pipeline.engine.step_inputs import read_group
from clipmill.pipeline.recipes.plan import ASKED_FOR, Plan, PlannedStep, ShardList, named_keys
from clipmill.schemas.folders import CHOICES, SOURCES
from clipmill.schemas.sql_text import literal, quoted
from clipmill.schemas.step_tables import NOT_ASKED, SKIPPED_RULE, StepTable, kept, scan
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA

_WRITERS = 8
Wanted = dict[str, dict[str, list[str]]]
"""By base shard, the keys to let in at each step, by its label."""


def newly_asked(
    plan: Plan, steps: Iterable[PlannedStep], dataset: Path, shards: ShardList
) -> Wanted:
    """What earlier runs were not asked for, and this one is."""
    found: Wanted = {}
    if not any((dataset / CHOICES).glob("[!.]*.parquet")):
        return found
    asked = Asked(plan, dataset, shards)
    with duckdb.connect(":memory:") as connection:
        for step in steps:
            table = table_of(step, dataset)
            if table.folder is None:
                continue
            requested = _requested(shards, step, dataset)
            for base, keys in asked_keys(connection, asked, step, not_asked(table)).items():
                if again := sorted(keys - requested):
                    found.setdefault(base, {})[step.label] = again
            if spans_column(step) is not None:
                for base, wider in _wider(connection, step, table, asked).items():
                    if again := sorted(wider - requested):
                        found.setdefault(base, {}).setdefault(step.label, []).extend(again)
    return found


def request(
    plan: Plan, dataset: Path, shards: ShardList, wanted: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, int]:
    """Writes the requests for `wanted`; returns the number of keys by stage, in order."""
    requests = Requests(dataset, shards)
    asked_at = datetime.now(UTC).isoformat()

    def write(base: str) -> None:
        by_step = wanted[base]
        parts = [(step, by_step[step.label]) for step in plan.steps if step.label in by_step]
        (first, keys), *also = parts
        requests.write(first, base, keys, asked_at, ASKED_FOR, also)

    # Most of the time passes waiting for the disk.
    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, sorted(wanted)))
    counts: dict[str, int] = {}
    for step in plan.steps:
        if count := sum(len(by_step.get(step.label, ())) for by_step in wanted.values()):
            counts[step.stage_label] = counts.get(step.stage_label, 0) + count
    return counts


def not_asked(table: StepTable) -> str:
    """`key, base` of the rows whose newest outcome is that no run has asked for them."""
    key = quoted(table.key)
    left_out = (
        f"SELECT {key} AS key, _base AS base, max(_retry) AS retry "
        f"FROM ({scan(table, [table.key, 'rejection'])}) "
        f"WHERE rejection.rule = {literal(SKIPPED_RULE)} "
        f"AND starts_with(rejection.detail, {literal(NOT_ASKED)}) GROUP BY ALL"
    )
    if not table.retried:
        return left_out
    later = scan(table, [table.key], retries_only=True)
    return (
        f"SELECT s.* FROM ({left_out}) AS s ANTI JOIN ({later}) AS l "
        f"ON l.{key} = s.key AND l._base = s.base AND l._retry > s.retry"
    )


def _by_base(
    connection: duckdb.DuckDBPyConnection, query: str, shards: ShardList
) -> dict[str, list[str]]:
    rows = connection.execute(
        f"SELECT base, list(key ORDER BY key) FROM ({query}) GROUP BY base ORDER BY base"
    ).fetchall()
    first = set(shards.first)
    return {name: keys for base, keys in rows if (name := shard_name(base)) in first}


def _requested(shards: ShardList, step: PlannedStep, dataset: Path) -> set[str]:
    """Keys that an unfinished request has let in already."""
    found: set[str] = set()
    for name, asked in shards.retries.items():
        keys = named_keys(asked, step)
        if keys and not shard_path(step.folder(dataset), name).exists():
            found.update(keys)
    return found


def _wider(
    connection: duckdb.DuckDBPyConnection, step: PlannedStep, table: StepTable, asked: Asked
) -> dict[str, set[str]]:
    """Sources whose newest row has fewer of their given spans than are asked for now."""
    shards, dataset = asked.shards, asked.dataset
    rows = (
        f"SELECT d.source_key AS key, d._base AS base "
        f"FROM ({kept(table, ['source_key', 'spans'])}) AS d "
        f"JOIN ({kept(_sources(dataset), ['source_key', 'spans'])}) AS s "
        "ON s.source_key = d.source_key AND s._base = d._base WHERE len(s.spans) > len(d.spans)"
    )
    found: dict[str, set[str]] = {}
    for base, keys in _by_base(connection, rows, shards).items():
        group = shards.group(base)
        before = spans_before(step, dataset, group)
        given = ShardSources(asked.plan, dataset, group).spans
        # Those that failed since then wait for a retry.
        candidates = asked.keys(step, base, keys) - _failed(step, dataset, group)
        wider = {
            key
            for key in candidates
            if len(asked.spans(key, base, given[key], before[key]) or ()) > len(before[key])
        }
        if wider:
            found[base] = wider
    return found


def _sources(dataset: Path) -> StepTable:
    folder = str(dataset / SOURCES)
    return StepTable(SOURCES, SOURCES, SOURCES, "source_key", SOURCES_SCHEMA, folder)


def _failed(step: PlannedStep, dataset: Path, group: Sequence[str]) -> set[str]:
    """The keys of a group whose newest row is a failure."""
    failed: set[str] = set()
    for _, rows in read_group(step, dataset, group, ["error"]):
        failed -= set(rows[step.key].to_pylist())
        failed |= set(rows.filter(pc.is_valid(rows["error"]))[step.key].to_pylist())
    return failed

"""Which of a shard's rows a step does not do, and why: those that don't pass its gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from clipmill.pipeline.recipes.gates import check_gates, gate_rows
from clipmill.pipeline.recipes.plan import Plan, PlannedStep
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.sql_text import escaped_for_glob, literal


class LeftOut:
    """Evaluates the gates of a plan in one process, over one shard at a time."""

    def __init__(self, plan: Plan, dataset: Path) -> None:
        self._plan, self._dataset = plan, dataset
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._columns = {
            checked.step.label: set(checked.columns) for checked in check_gates(plan.steps)
        }

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def of(self, step: PlannedStep, group: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
        """The keys that the step skips, each with the reason; `group` are the shard's."""
        gate = step.gate
        if gate is None or not keys:
            return {}
        rows = gate_rows(self._plan.steps, step, self._dataset, group, self._columns[step.label])
        try:
            found = self._open().execute(rows.where(gate.condition())).fetchall()
        except duckdb.Error as error:
            raise broken(step, error) from error
        passed = {key for key, _ in found}
        return {key: gate.says() for key in keys if key not in passed}

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            self._connection = gate_connection(self._dataset, threads=1)
        return self._connection


def gate_connection(dataset: Path, *, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A connection for gates, which can read nothing but the dataset."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    # DuckDB also checks the files that names resolve to: a table's folder may be a link.
    links = [entry.resolve() for entry in dataset.iterdir() if entry.is_symlink()]
    places = [str(place) for place in (dataset.absolute(), dataset.resolve(), *links)]
    names = {name for place in places for name in (place, escaped_for_glob(place))}
    allowed = ", ".join(map(literal, sorted(names)))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    return connection


def broken(step: PlannedStep, error: duckdb.Error) -> ClipmillError:
    """The error for a gate that can be written, but not computed for some row."""
    gate = step.gate
    assert gate is not None  # it was just evaluated
    said = str(error).partition("\n")[0]
    return ClipmillError(
        f"the gate of {step.stage_label}, {gate.says()}, can't be computed: {said}; write TRY_CAST "
        "or coalesce for rows that have no such value, and run again"
    )

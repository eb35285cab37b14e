"""Lets rows in that were skipped before and pass now: a gate was changed, or a value came later.

Committed shards stay as they are. As for a retry, a small new shard is requested for the keys, at
the step that skipped them; what they have made there goes on to later steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from clipmill.pipeline.dataset.shards import base_shard
from clipmill.pipeline.engine.asked import Asked
from clipmill.pipeline.engine.asked_rows import asked_keys
from clipmill.pipeline.engine.left_out import broken, gate_connection
from clipmill.pipeline.engine.retry import LET_IN, Requests, read_requests
from clipmill.pipeline.recipes.gates import CheckedGate, check_gates, gate_rows, step_table
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, pending
from clipmill.schemas.sql_text import literal
from clipmill.schemas.step_tables import outcomes

Skipped = dict[str, list[str]]
"""Keys by base shard."""


@dataclass
class LettingIn:
    """Requests what passes now; remembers what it has requested, so that nothing comes twice."""

    dataset: Path
    may_skip: Collection[str] = ()
    """Labels of steps that have skipped rows in an earlier run."""
    _asked: dict[str, set[str]] = field(default_factory=dict)

    def request(
        self, plan: Plan, steps: Sequence[PlannedStep], asked_for: ShardList
    ) -> dict[str, int]:
        """Writes a request for every group with keys to let in; their number by stage.

        `asked_for` are the shards that the run may work on. A gate is asked only about groups for
        which everything that it depends on is done, one over all rows only if that is so for all
        groups: the caller runs what is pending, then calls again.
        """
        gates = {one.step.label: one for one in check_gates(plan.steps)}
        asked = Asked(plan, self.dataset, asked_for)
        bases = set(asked_for.first)
        found: dict[str, int] = {}
        asked_at = datetime.now(UTC).isoformat()
        for step in steps:
            if step.gate is None and step.label not in self.may_skip:
                continue
            if step.gate is not None and step.gate.of_all and step.gate.threshold is None:
                continue  # its threshold is not known yet
            requested = read_requests(self.dataset)
            shards = ShardList(
                asked_for.first,
                {name: asks for name, asks in requested.items() if base_shard(name) in bases},
            )
            checked = gates.get(step.label)
            waiting = groups_that_wait(plan, step, checked, shards, self.dataset)
            if step.gate is not None and step.gate.of_all and waiting:
                continue
            requests = Requests(self.dataset, shards)
            known = self._asked.setdefault(step.label, set())
            passing = passing_now(plan, step, checked, self.dataset, waiting)
            wanted_now = _asked_of(asked, step, passing)
            for base, keys in passing.items():
                wanted = wanted_now.get(base, ())
                new = [key for key in keys if key in wanted and key not in known]
                if new:
                    known.update(new)
                    requests.write(step, base, new, asked_at, LET_IN)
                    found[step.stage_label] = found.get(step.stage_label, 0) + len(new)
        return found


def _asked_of(asked: Asked, step: PlannedStep, keys: Skipped) -> Mapping[str, Collection[str]]:
    """Those of the keys that the run is asked for."""
    first = set(asked.shards.first)
    keys = {base: mine for base, mine in keys.items() if base in first}
    if asked.choice is None:
        return keys
    rows = pa.table(
        {
            "key": pa.array([key for mine in keys.values() for key in mine], pa.string()),
            "base": pa.array([int(base) for base, mine in keys.items() for _ in mine], pa.int64()),
        }
    )
    with closing(duckdb.connect(":memory:")) as connection:
        connection.register("passing", rows)
        return asked_keys(connection, asked, step, "SELECT key, base FROM passing")


def groups_that_wait(
    plan: Plan, step: PlannedStep, checked: CheckedGate | None, shards: ShardList, dataset: Path
) -> set[str]:
    """The base shards with something to do at the step, or at one that its gate depends on."""
    labels = {step.label} if checked is None else {step.label, *checked.depends}
    todo = pending(plan, [plan.by_label[label] for label in labels], shards, dataset)
    return {base_shard(shard) for missing in todo.values() for shard in missing}


def passing_now(
    plan: Plan,
    step: PlannedStep,
    checked: CheckedGate | None,
    dataset: Path,
    without: Collection[str] = (),
) -> Skipped:
    """The skipped keys of a step that pass its gate now, but not in some base shards."""
    own = step_table(step, dataset)
    if own.folder is None:
        return {}
    keys = f"SELECT key, _base FROM ({outcomes(own)}) WHERE outcome = 'skipped'"
    if without:
        bases = ", ".join(str(int(base)) for base in sorted(without))
        keys += f" AND _base NOT IN ({bases})"
    query = keys
    if step.gate is not None and checked is not None:
        rows = gate_rows(plan.steps, step, dataset, None, set(checked.columns))
        query = (
            f"SELECT key, _base FROM ({keys}) SEMI JOIN ({rows.where(step.gate.condition())}) "
            "USING (key, _base)"
        )
    with closing(gate_connection(dataset)) as connection:
        try:
            found = connection.execute(
                "SELECT printf('%06d', _base), list(key ORDER BY key) "
                f"FROM ({query}) GROUP BY _base ORDER BY _base"
            ).fetchall()
        except duckdb.Error as error:
            if step.gate is None:
                raise
            raise broken(step, error) from error
    return dict(found)


def let_through(plan: Plan, checked: CheckedGate, dataset: Path) -> tuple[int, int] | None:
    """Of the rows before a gate, how many pass it and how many there are; None if none yet."""
    step, gate = checked.step, checked.gate
    rows = gate_rows(plan.steps, step, dataset, None, set(checked.columns))
    with closing(gate_connection(dataset)) as connection:
        try:
            ((whole, passed),) = connection.execute(
                f"SELECT (SELECT count(*) FROM ({rows.where('true')})), "
                f"(SELECT count(*) FROM ({rows.where(gate.condition())}))"
            ).fetchall()
        except duckdb.Error as error:
            raise broken(step, error) from error
    return (passed, whole) if whole else None


def is_true(step: PlannedStep) -> bool:
    """Whether a gate that names no column is true."""
    assert step.gate is not None  # the caller asks for steps with gates
    with closing(duckdb.connect(":memory:")) as connection:
        ((found,),) = connection.execute(f"SELECT {step.gate.condition()}").fetchall()
    return bool(found)


def skipped_and_done(step: PlannedStep, dataset: Path) -> tuple[int, int]:
    """How many keys a step has skipped, and how many it has done."""
    own = step_table(step, dataset)
    if own.folder is None:
        return 0, 0
    with closing(gate_connection(dataset)) as connection:
        ((skipped, done),) = connection.execute(
            f"SELECT count(*) FILTER (outcome = {literal('skipped')}), "
            f"count(*) FILTER (outcome <> {literal('skipped')}) FROM ({outcomes(own)})"
        ).fetchall()
    return skipped, done

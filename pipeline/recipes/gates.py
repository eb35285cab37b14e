"""Gates: conditions in a recipe that choose which rows a stage gets.

A gate is not a setting of its stage, and not part of its fingerprint: it decides which rows get a
result, not what the result is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.pipeline.catalog.gate_rows import GateRows, rows_before
from clipmill.pipeline.catalog.gate_sql import GateSql
from clipmill.pipeline.catalog.layout import in_its_role
from clipmill.pipeline.dataset.shards import existing, list_shards_in, retry_number
from clipmill.schemas import tables
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import INGEST, SOURCES
from clipmill.schemas.step_tables import StepTable

if TYPE_CHECKING:
    from clipmill.pipeline.recipes.plan import PlannedStep

SETTING = "where"
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_FORMS = "a condition such as `motion > 2`, or `{best: 30%, of: similarity}`"


@dataclass(frozen=True)
class Gate:
    """A condition, or the best share `of` something, or both: the best among those that pass.

    `threshold` is what the best share came to, once all rows are known.
    """

    predicate: str | None = None
    best: float | None = None
    of: str | None = None
    threshold: float | None = None

    @classmethod
    def parse(cls, value: Any, place: str) -> Gate | None:
        """The gate that a recipe writes; None for null. UsageError that names `place`."""
        if value is None:
            return None
        if isinstance(value, bool):
            return cls(str(value).lower())
        if isinstance(value, str) and value.strip():
            return cls(value.strip())
        if not isinstance(value, Mapping):
            raise UsageError(f"{place}: expected {_FORMS} (given: {value!r})")
        if unknown := set(value) - {"best", "of", "among"}:
            raise UsageError(
                f"{place}: unknown {sorted(map(str, unknown))[0]!r}; expected {_FORMS}, with "
                "`among: CONDITION` for the best of some rows"
            )
        of, among = value.get("of"), value.get("among")
        if not isinstance(of, str) or "best" not in value:
            raise UsageError(f"{place}: `best` and `of` belong together: {{best: 30%, of: COLUMN}}")
        if among is not None and not isinstance(among, str):
            raise UsageError(f"{place}.among: expected a condition (given: {among!r})")
        return cls(among, _share(value["best"], place), of.strip())

    @property
    def of_all(self) -> bool:
        """Whether it can act only when all rows before it are known."""
        return self.best is not None

    def plain(self) -> str | dict[str, str] | None:
        """As a recipe writes it."""
        if self.best is None or self.of is None:
            return self.predicate
        found = {"best": f"{100 * self.best:g}%", "of": self.of}
        return {**found, "among": self.predicate} if self.predicate else found

    def says(self) -> str:
        """`where motion > 2`, or `where best 30% of similarity (>= 0.31)`."""
        if self.best is None:
            return f"{SETTING} {self.predicate}"
        said = f"{SETTING} best {100 * self.best:g}% of {self.of}"
        if self.predicate:
            said += f" among {self.predicate}"
        if self.threshold is None or math.isinf(self.threshold):
            return said
        return f"{said} (>= {self.threshold:.6g})"

    def as_written(self) -> Gate:
        """Without the threshold that a run found."""
        return replace(self, threshold=None)

    def condition(self) -> str:
        """The SQL that is true for rows that pass."""
        predicate = f"({self.predicate}\n)" if self.predicate else "true"
        if self.best is None:
            return predicate
        threshold = math.inf if self.threshold is None else self.threshold
        score = f"CAST(({self.of}\n) AS DOUBLE)"
        # In DuckDB, NaN is larger than any number.
        return f"{predicate} AND isfinite({score}) AND {score} >= CAST('{threshold!r}' AS DOUBLE)"


def is_condition(text: str) -> bool:
    """Whether a gate's text is SQL as it stands; otherwise it is YAML for a gate.

    SQL may hold what has another meaning in YAML: `title <> 'a: b #1'`.
    """
    text = text.strip()
    if text.startswith("{") or text.lower() in ("", "null", "~", "true", "false"):
        return False
    # The Python interface passes texts as JSON.
    return not (text.startswith('"') and text.endswith('"'))


def _share(value: Any, place: str) -> float:
    text = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    share = float(text[1]) / 100 if text else value
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 < share < 1:
        raise UsageError(
            f"{place}.best: expected a share between 0% and 100%, such as 30% (given: {value!r})"
        )
    return float(share)


def step_table(
    step: PlannedStep, dataset: Path | None = None, group: Sequence[str] | None = None
) -> StepTable:
    """A step's table for the catalog's SQL: empty, of a dataset, or of some of its shards."""
    folder = None if dataset is None else step.folder(dataset)
    return _table(folder, step.label, step.stage_label, step.name, step, group)


def sources_table(dataset: Path | None = None, group: Sequence[str] | None = None) -> StepTable:
    """Likewise, the table of sources."""
    folder = None if dataset is None else dataset / SOURCES
    return _table(folder, INGEST, INGEST, INGEST, None, group)


def _table(
    folder: Path | None,
    label: str,
    stage: str,
    name: str,
    step: PlannedStep | None,
    group: Sequence[str] | None,
) -> StepTable:
    schema = tables.SOURCES if step is None else step.stage.table_schema
    if folder is None:
        shards: list[str] = []
    elif group is not None:
        shards = existing(folder, group)
    else:
        shards, _ = list_shards_in(folder)
    table = StepTable(
        label,
        stage,
        name,
        schema.names[0],
        schema,
        str(folder) if shards else None,
        tuple(sorted(shard for shard in shards if retry_number(shard))),
        None if step is None else step.score,
        shards=None if group is None else tuple(shards),
    )
    return table if step is None else in_its_role(table, step)


def steps_before(steps: Sequence[PlannedStep], step: PlannedStep) -> list[PlannedStep]:
    """The steps that a shard has passed through when it comes to one."""
    labels = [one.label for one in steps]
    return list(steps[: labels.index(step.label)])


def gate_rows(
    steps: Sequence[PlannedStep],
    step: PlannedStep,
    dataset: Path | None = None,
    group: Sequence[str] | None = None,
    only: set[str] | None = None,
) -> GateRows:
    """The rows from which a step's gate chooses: of nothing, of a dataset, of some shards."""
    before = [step_table(one, dataset, group) for one in steps_before(steps, step)]
    return rows_before(step.key, before, sources_table(dataset, group), only)


@dataclass(frozen=True)
class CheckedGate:
    """A step with a gate, and the columns that the gate names, with the stages that make them.

    It depends on the steps that make its rows and those columns, and on all that these need.
    """

    step: PlannedStep
    gate: Gate
    columns: dict[str, str]
    depends: frozenset[str]


def check_gates(steps: Sequence[PlannedStep]) -> list[CheckedGate]:
    """The gates of a recipe; UsageError, with the stage and the condition, for one in error."""
    if not any(step.gate for step in steps):
        return []
    found = []
    with closing(GateSql()) as sql:
        for step in steps:
            gate = step.gate
            if gate is None:
                continue
            place = f"stages.{step.stage_label}.{SETTING}"
            rows = gate_rows(steps, step)
            later = _made_later(steps, step, rows)
            names: set[str] = set()
            if gate.predicate is not None:
                names |= sql.condition(gate.predicate, place, rows, later, step.stage_label)
            if gate.of is not None:
                names |= sql.score(gate.of, place, rows, later, step.stage_label)
            columns = {name: rows.columns[name] for name in sorted(names)}
            found.append(CheckedGate(step, gate, columns, _depends(steps, step, columns)))
    return found


def _depends(
    steps: Sequence[PlannedStep], step: PlannedStep, columns: Mapping[str, str]
) -> frozenset[str]:
    before = steps_before(steps, step)
    stages = set(columns.values())
    found = {one.label for one in before if one.stage_label in stages}
    found |= {one.label for one in before if one.key != step.key and step.key in one.columns}
    for one in reversed(before):
        if one.label in found:
            found |= one.upstream.keys()
    return frozenset(found)


def _made_later(steps: Sequence[PlannedStep], step: PlannedStep, rows: GateRows) -> dict[str, str]:
    """The columns of the view that are not there yet, with the stages that make them."""
    whole: dict[str, str] = {}
    every = [step_table(one) for one in steps]
    for key in ("clip_id", "video_id"):
        if any(key in table.schema.names for table in every):
            whole = {**rows_before(key, every, sources_table()).columns, **whole}
    return {name: stage for name, stage in whole.items() if name not in rows.columns}

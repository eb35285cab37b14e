"""Lets stages find, in the rows of all shards, what each of their shards then needs.

Such a step begins a phase, as a gate over all rows does: the steps that it reads from have done
every shard by then, so what it finds does not depend on the order in which they did.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.fits import Fit, fit_file, has_fit, open_fit, store_fit
from clipmill.pipeline.dataset.run_records import FitRecord
from clipmill.pipeline.dataset.shards import (
    ShardMetadata,
    base_shard,
    committed_shards,
    shard_order,
    shard_path,
)
from clipmill.pipeline.engine.step_inputs import input_table
from clipmill.pipeline.recipes.plan import Plan, PlannedStep
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import OUTCOME
from clipmill.schemas.words import counted
from clipmill.stages.media.isolation.progress import beat, heard_by

# From this growth on, what was found may no longer describe the rows.
_GROWN = 4
_FOOTERS_READ = 200
_REPORT_SECONDS = 1.0

Report = Callable[[str, Counter[Any]], None]
"""Takes what a stage has spent, or nothing where it only goes on."""


def needs_fit(step: PlannedStep, dataset: Path) -> bool:
    return step.stage.fits and not has_fit(dataset, step)


def require_fit(step: PlannedStep, dataset: Path) -> None:
    """ClipmillError if the fit is gone that a step's shards were made with."""
    folder = step.folder(dataset)
    made = [f.name for f in step.stage.columns_written() if not f.name.endswith("_reason")]
    values = [name for name in made if name not in (step.key, *(f.name for f in OUTCOME))]
    for shard in committed_shards(folder):
        if _has_any(shard_path(folder, shard), values):
            raise ClipmillError(
                f"{fit_file(step)} is missing, with which {step.stage_label} made the shards in "
                f"{step.place()}; restore the file, or delete that folder, too: a run makes both "
                "again"
            )


def _has_any(path: Path, columns: Sequence[str]) -> bool:
    """Whether a shard has any value in one of these columns, by its footer."""
    with reading(path):
        footer = pq.read_metadata(path)
        return any(
            column.statistics is None or column.statistics.null_count < column.num_values
            for group in map(footer.row_group, range(footer.num_row_groups))
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.partition(".")[0] in columns
        )


@dataclass(frozen=True)
class Rows:
    """The rows that a step reads, one base shard after the other; counted as they are read."""

    plan: Plan
    step: PlannedStep
    dataset: Path

    def __iter__(self) -> Iterator[pa.Table]:
        for group in self.groups():
            seen: pa.ChunkedArray | None = None
            # Of a key in several shards the newest row counts, which each of them shows.
            for shard in reversed(group):
                table = input_table(self.plan, self.step, self.dataset, shard, group)
                keys = table[self.step.key]
                if seen is not None:
                    table = table.filter(pc.invert(pc.is_in(keys, seen)))
                seen = keys if seen is None else pa.chunked_array([*seen.chunks, *keys.chunks])
                if table.num_rows:
                    yield table

    def groups(self) -> list[list[str]]:
        """The base shards that all steps before have, each with its retries, in order."""
        found: dict[str, set[str]] = {}
        for label in self.step.upstream:
            folder = self.plan.by_label[label].folder(self.dataset)
            for shard in committed_shards(folder):
                found.setdefault(base_shard(shard), set()).add(shard)
        return [sorted(found[base], key=shard_order) for base in sorted(found)]


def fit_step(
    plan: Plan, step: PlannedStep, dataset: Path, run_id: str, report: Report
) -> Fit | None:
    """Finds and keeps what a step needs; None if there is nothing yet in which to find it."""
    with heard_by(_Reports(step.stage_label, report)):
        return _found(plan, step, dataset, run_id)


class _Reports:
    """Hears of progress, and reports it with the processor time spent, once a second at most."""

    def __init__(self, label: str, report: Report) -> None:
        self._label, self._report = label, report
        self._reported, self._counted = time.monotonic(), time.process_time()

    def __call__(self, *_: object, **__: object) -> None:
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            spent = time.process_time() - self._counted
            self._reported, self._counted = time.monotonic(), self._counted + spent
            self._report(self._label, Counter({"cpu_seconds": spent}))


def _found(plan: Plan, step: PlannedStep, dataset: Path, run_id: str) -> Fit | None:
    rows = Rows(plan, step, dataset)
    count = 0

    def read() -> Iterator[pa.Table]:
        nonlocal count
        for table in rows:
            count += table.num_rows
            beat()
            yield table

    found = step.stage.fit_on(read())
    if found is None:
        return None
    shards = len(rows.groups())
    store_fit(dataset, Fit(step.label, step.fingerprint, run_id, count, shards), found)
    kept = open_fit(dataset, step)
    return None if kept is None else kept[0]


def fit_record(dataset: Path, step: PlannedStep) -> FitRecord | None:
    """What a run's record says of a step's fit."""
    found = open_fit(dataset, step) if step.stage.fits else None
    if found is None:
        return None
    fit, table = found
    return {"file": fit.file, "run_id": fit.run_id, "rows": fit.rows, "found": table.num_rows}


def fit_notes(plan: Plan, steps: Sequence[PlannedStep], dataset: Path) -> list[str]:
    """Which fits were found in far fewer rows than they are used for."""
    lines = []
    for step in steps:
        found = open_fit(dataset, step) if step.stage.fits else None
        if found is None:
            continue
        folder = plan.by_label[_maker(step)].folder(dataset)
        now = _kept_rows(folder, committed_shards(folder))
        if now >= _GROWN * found[0].rows:
            lines.append(
                f"{step.stage_label} was fitted to {counted(found[0].rows, 'row')}, and there are "
                f"about {now:,} now; {_next_fit(step)}"
            )
    return lines


def _next_fit(step: PlannedStep) -> str:
    fits = getattr(step.stage, "fit", None)
    again = "fits it to all of them and makes all its rows again"
    if isinstance(fits, int):
        return f"--set {step.stage_label}.fit={fits + 1} {again}"
    return f"another setting of it {again}"


def _maker(step: PlannedStep) -> str:
    """The step whose rows say how many a step gets: the last one that it must read."""
    return [label for label in step.upstream if label in step.required][-1]


def _kept_rows(folder: Path, shards: Sequence[str]) -> int:
    """About how many rows were kept, from the footers of some shards."""
    some = shards[:: max(1, len(shards) // _FOOTERS_READ)]
    kept = sum(ShardMetadata.read(shard_path(folder, shard)).kept for shard in some)
    return round(kept * len(shards) / len(some)) if some else 0

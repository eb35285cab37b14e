"""Turns what a stage returned for a batch into rows that can be committed.

Every key has an outcome; a key that the stage lost or returned twice, or an invalid score, is
recorded as a failure or, if the stage has a column for it, as a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.engine.step_inputs import read_group
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.errors import (
    MAX_MESSAGE_CHARACTERS,
    ClipmillError,
    ErrorKind,
    RowFailed,
    RowRejected,
)
from clipmill.schemas.ids import is_file_name
from clipmill.schemas.step_tables import SKIPPED_RULE
from clipmill.schemas.tables import ERROR, REJECTION

NOT_FINITE = "the score is not finite"


def makes_clips(step: PlannedStep) -> bool:
    """Whether a key may have many rows: the clips that the step makes from it."""
    return step.stage.key != "clip_id" and "clip_id" in step.stage.table_schema.names


def made_before(
    step: PlannedStep, dataset: Path, group: Sequence[str], again: Sequence[str]
) -> set[str]:
    """The clips that the step has made in a shard's group from other keys than `again`."""
    if not makes_clips(step):
        return set()
    newest: dict[str, list[str]] = {}
    for _, rows in read_group(step, dataset, group, ["clip_id"]):
        found: dict[str, list[str]] = {}
        for row in rows.to_pylist():
            if row["clip_id"] is not None:
                found.setdefault(row[step.key], []).append(row["clip_id"])
        newest.update(found)
    return {clip for key in newest.keys() - set(again) for clip in newest[key]}


def complete(
    step: PlannedStep,
    batch: pa.Table,
    tables: dict[str, pa.Table],
    attempts: dict[str, int],
    made: set[str],
) -> dict[str, pa.Table]:
    """The output with an outcome for each key, and errors with their attempts and time.

    `made` are the clips that the stage has made from other keys so far; this batch's are added.
    """
    schema, key = step.stage.table_schema, step.stage.key
    table = tables[step.label]
    for name, kind in (("rejection", REJECTION), ("error", ERROR)):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    missing_columns = [name for name in schema.names if name not in table.column_names]
    if missing_columns or set(table.column_names) - set(schema.names):
        raise ClipmillError(
            f"stage {step.stage_label} returned the columns {table.column_names}, but it declares "
            f"{schema.names}; return exactly those"
        )
    table = table.select(schema.names).cast(schema)
    asked = batch[key].to_pylist()
    given = set(table[key].to_pylist())
    if strangers := given - set(asked):
        raise ClipmillError(
            f"stage {step.stage_label} returned rows for keys that it was not "
            f"given, e.g. {sorted(strangers, key=str)[0]!r}"
        )
    if lost := [name for name in asked if name not in given]:
        error = RowFailed(step.stage.error_kind, "the stage returned no row for this key")
        table = pa.concat_tables([table, failed_rows(step, lost, error)])
    for name in {"video_id", "clip_id"} & set(schema.names) - {key}:
        for made_id in table[name].drop_null().unique().to_pylist():
            if not is_file_name(made_id):
                raise ClipmillError(
                    f"stage {step.stage_label} made the {name} {made_id[:100]!r}, but files are "
                    "named after it: only letters, digits, _ and -, no dash at the start, at most "
                    "200; see schemas/ids.py for how to make one"
                )
    table = _with_finite_scores(step, table)
    doubled = dict(
        _doubled_clips(table, key, asked, made) if makes_clips(step) else _doubled_keys(table, key)
    )
    table = _with_failures(step, table, step.stage.error_kind, doubled)
    return {**tables, step.label: _stamp(table, key, attempts)}


def failed_rows(step: PlannedStep, keys: list[str], problem: RowFailed | RowRejected) -> pa.Table:
    if isinstance(problem, RowRejected):
        outcome = {"rejection": {"rule": problem.rule, "detail": problem.detail}}
    else:
        outcome = {"error": {"kind": problem.kind, "message": problem.message}}
    rows = [{step.stage.key: key, **outcome} for key in keys]
    return pa.Table.from_pylist(rows, schema=step.stage.table_schema)


def skipped_rows(step: PlannedStep, details: Mapping[str, str]) -> pa.Table:
    """A row for each key that the step was not asked to do; `details` says by what."""
    rows = [
        {step.stage.key: key, "rejection": {"rule": SKIPPED_RULE, "detail": detail}}
        for key, detail in details.items()
    ]
    return pa.Table.from_pylist(rows, schema=step.stage.table_schema)


def _with_failures(
    step: PlannedStep, table: pa.Table, kind: ErrorKind, problems: Mapping[str, str]
) -> pa.Table:
    """The table with one failed row for each key in `problems`, instead of all of its rows."""
    if not problems:
        return table
    key = step.stage.key
    others = table.filter(pc.invert(pc.is_in(table[key], pa.array(problems, pa.string()))))
    return pa.concat_tables(
        [
            others,
            *(
                failed_rows(step, [name], RowFailed(kind, message))
                for name, message in problems.items()
            ),
        ]
    )


def _doubled_keys(table: pa.Table, key: str) -> Iterator[tuple[str, str]]:
    for name, rows in Counter(table[key].to_pylist()).items():
        if rows > 1:
            yield name, f"the stage returned {rows} rows for this key; expected one"


def _doubled_clips(
    table: pa.Table, key: str, asked: Sequence[str], made: set[str]
) -> Iterator[tuple[str, str]]:
    """The keys that have a clip twice, or a clip that belongs to another key."""
    clips: dict[str, list[str]] = {name: [] for name in asked}
    for name, clip in zip(table[key].to_pylist(), table["clip_id"].to_pylist(), strict=True):
        if clip is not None:
            clips[name].append(clip)
    for name, own in clips.items():
        clip, rows = Counter(own).most_common(1)[0] if own else ("", 0)
        if rows > 1:
            yield name, f"the stage made the clip {clip} {rows} times"
        elif both := made.intersection(own):
            yield name, f"the stage made the clip {min(both)}, which another {key} already has"
        else:
            made.update(own)


def _with_finite_scores(step: PlannedStep, table: pa.Table) -> pa.Table:
    """The table without scores that are NaN or infinite.

    They become null, with a reason if the stage has a column `<score>_reason`. Without that column
    a kept row becomes a failure, so that the reason for the missing score is recorded.
    """
    score = step.stage.score
    if score not in table.column_names or not pa.types.is_floating(table[score].type):
        return table
    odd = pc.invert(pc.fill_null(pc.is_finite(table[score]), True))
    if not pc.any(odd).as_py():
        return table
    was_kept = pc.and_(pc.is_null(table["rejection"]), pc.is_null(table["error"]))
    kept_odd = pc.and_(odd, was_kept)
    reason = f"{score}_reason"
    problems = {}
    if reason in table.column_names and pa.types.is_string(table[reason].type):
        why = pc.if_else(pc.and_(kept_odd, pc.is_null(table[reason])), NOT_FINITE, table[reason])
        table = table.set_column(table.column_names.index(reason), table.schema.field(reason), why)
    else:
        rows = table.filter(kept_odd)
        problems = {
            key: f"{score} is {value}: {NOT_FINITE}, and the stage has no column {reason} "
            "to say so next to a null"
            for key, value in zip(
                rows[step.stage.key].to_pylist(), rows[score].to_pylist(), strict=True
            )
        }
    finite = pc.if_else(odd, pa.scalar(None, table[score].type), table[score])
    table = table.set_column(table.column_names.index(score), table.schema.field(score), finite)
    return _with_failures(step, table, "model", problems)


def _stamp(table: pa.Table, key: str, attempts: dict[str, int]) -> pa.Table:
    if table["error"].null_count == table.num_rows:
        return table
    now = datetime.now(UTC)
    errors = []
    for name, error in zip(table[key].to_pylist(), table["error"].to_pylist(), strict=True):
        if error is not None:
            error["message"] = (error["message"] or "")[:MAX_MESSAGE_CHARACTERS]
            error["attempts"] = attempts.get(name, 0) + 1
            error["at"] = now
        errors.append(error)
    return table.set_column(table.schema.get_field_index("error"), "error", pa.array(errors, ERROR))

"""Checks one file of a table: every byte of it, its schema, its footer, its keys."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import (
    SHARD_METADATA_KEY,
    ShardMetadata,
    is_skipped,
    note_each,
)
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.recipes.plan import KEY_LEVELS
from clipmill.pipeline.verify.findings import Book, SetAside, some
from clipmill.pipeline.verify.layout import Survey, is_cache
from clipmill.schemas.clocks import CLOCK_COLUMNS
from clipmill.schemas.damage import DamagedFile, what_is_there
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.words import counted
from clipmill.stages.built_in import further_tables

_OUTCOME = ("rejection", "error")
_SKIPPED = "_skipped"
_WANTED = (
    *KEY_LEVELS,
    "path",
    "size_bytes",
    "sha256",
    "duration_seconds",
    *CLOCK_COLUMNS,
    "start_seconds",
    "end_seconds",
)


@dataclass
class ShardRows:
    """The data of a shard that other checks need: all keys, and some columns of the kept rows."""

    keys: set[str]
    kept: pa.Table


@dataclass
class ShardChecks:
    """Checks files one by one; remembers the column types of custom stages."""

    survey: Survey
    book: Book
    damaged: set[tuple[str, str]] = field(default_factory=set)
    _types: dict[tuple[str, str], dict[str, list[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def own_table(self, step: Step, shard: str) -> ShardRows | None:
        """The shard of a step's own table; None if it is unusable."""
        where = step.file(shard)
        score = [step.score] if step.score is not None else []
        read = self._read(step, where, shard, [step.key, *_WANTED, *_OUTCOME, *score])
        if read is None:
            return None
        schema, metadata, table = read
        if not self._check_schema(step, where, shard, schema, step.built_in_schema):
            return None
        if not (
            self._check_double(step, where, shard, table)
            and self._check_footer(step, where, shard, metadata, table)
            and self._check_scores(step, where, shard, table)
        ):
            return None  # one fault, not another in every table made from it
        return ShardRows(set(table[step.key].to_pylist()), _kept(table))

    def further_table(self, step: Step, table: str, shard: str) -> set[str] | None:
        """The videos in a shard of a step's further table; None if it is unusable."""
        where = step.file(shard, table)
        read = self._read(step, where, shard, ["video_id"], table)
        if read is None:
            return None
        schema, _, rows = read
        if not self._check_schema(step, where, shard, schema, further_tables().get(table), table):
            return None
        return set(pc.unique(rows["video_id"]).to_pylist()) if "video_id" in schema.names else None

    def is_whole(self, step: Step, shard: str) -> bool:
        return (step.place(), shard) not in self.damaged

    def _read(
        self, step: Step, where: str, shard: str, columns: list[str], table: str | None = None
    ) -> tuple[pa.Schema, dict[bytes, bytes], pa.Table] | None:
        path = self.survey.dataset / where
        try:
            if there := what_is_there(path):
                # Not opened: a named pipe would block forever.
                self._bad(step, where, shard, "unreadable", f"is {there}, not a file", table)
                return None
            found = read_whole(path, columns)
        except FileNotFoundError:
            # It existed when the folder was listed: a run or a removal is active.
            self._bad(
                step, where, shard, "missing", "disappeared while being read", table, at_rest=True
            )
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._bad(step, where, shard, "unreadable", f"can't be read to its end ({said})", table)
            return None
        self.book.report.checked["shards"] += 1
        self.book.report.checked["rows"] += found[2].num_rows
        return found

    def _bad(
        self,
        step: Step,
        where: str,
        shard: str,
        check: str,
        what: str,
        table: str | None = None,
        *,
        at_rest: bool = False,
    ) -> None:
        if table is not None and is_cache(table):
            # Only frames are moved: results made from them are still valid.
            self.book.fault(
                check,
                where,
                what,
                f"{self.book.repair}; stages then read the frames from the video again",
                SetAside((where,)),
                at_rest=at_rest,
            )
            return
        self.damaged.add((step.place(), shard))
        self.book.remake(check, where, what, step.label, step.fingerprint, shard, at_rest=at_rest)

    def _check_schema(
        self,
        step: Step,
        where: str,
        shard: str,
        found: pa.Schema,
        declared: pa.Schema | None,
        table: str | None = None,
    ) -> bool:
        """Checks that the columns are those declared when the shard was written."""
        problems = []
        if table is None:
            names = set(self._declared_names(step, where))
            problems += [f"has no column {name}" for name in sorted(names - set(found.names))]
            problems += [
                f"has a column {name} that is not declared"
                for name in sorted(set(found.names) - names)
            ]
        elif declared is not None:
            # An earlier version may have written it, before a column that may be null was added.
            problems += [
                f"has no column {field.name}"
                for field in declared
                if not field.nullable and field.name not in found.names
            ]
        for column in found:
            if declared is not None and column.name in declared.names:
                wanted = declared.field(column.name).type
                if not _fits(column.type, wanted):
                    problems.append(f"column {column.name} is {column.type}, declared is {wanted}")
            elif table is None:
                self._types[step.place(), column.name][str(column.type)].append(shard)
        if problems:
            self._bad(step, where, shard, "schema", "; ".join(problems), table)
        return not problems

    def _declared_names(self, step: Step, where: str) -> tuple[str, ...]:
        if step.label == SOURCES:
            # Any version may have written it; all its columns but the key may be missing.
            present = pq.read_schema(self.survey.dataset / where).names
            return tuple(
                name
                for name in step.columns
                if name in present or name in ("source_key", *_OUTCOME)
            )
        try:
            run_id = ShardMetadata.read(self.survey.dataset / where).run_id
        except DamagedFile:
            run_id = ""
        return self.survey.declared.get((run_id, *step.id), step.columns)

    def finish(self) -> None:
        """Checks columns of custom stages, whose types are known only from the other shards."""
        for (place, column), kinds in self._types.items():
            if len(kinds) < 2:
                continue
            usual = max(kinds, key=lambda kind: len(kinds[kind]))
            for kind, shards in kinds.items():
                if kind == usual:
                    continue
                label, _, fingerprint = place.partition("/")
                for shard in shards:
                    self.damaged.add((place, shard))
                    self.book.remake(
                        "schema",
                        f"{place}/{shard}.parquet",
                        f"column {column} is {kind}, in other shards {usual}",
                        label,
                        fingerprint,
                        shard,
                    )

    def _check_footer(
        self, step: Step, where: str, shard: str, metadata: dict[bytes, bytes], table: pa.Table
    ) -> bool:
        found = metadata.get(SHARD_METADATA_KEY)
        problems: list[str] = []
        if found is None:
            problems.append("it lacks its stage and counts")
        else:
            try:
                values = json.loads(found)
                problems += _footer_problems(step, shard, values, table)
            except (ValueError, TypeError, AttributeError) as error:
                problems.append(f"it can't be read ({error})")
        if problems:
            self.damaged.add((step.place(), shard))
            self.book.remake(
                "footer",
                where,
                f"the footer is wrong: {'; '.join(problems)}",
                step.label,
                step.fingerprint,
                shard,
            )
        return not problems

    def _check_double(self, step: Step, where: str, shard: str, table: pa.Table) -> bool:
        names = table.column_names
        many = step.key != "clip_id" and "clip_id" in names
        column = "clip_id" if many else step.key
        counts = Counter(key for key in table[column].to_pylist() if key is not None)
        double = [key for key, number in counts.items() if number > 1]
        if double:
            self.damaged.add((step.place(), shard))
            self.book.remake(
                "double",
                where,
                f"{counted(len(double), column)} in it more than once: {some(double)}",
                step.label,
                step.fingerprint,
                shard,
            )
        return not double

    def _check_scores(self, step: Step, where: str, shard: str, table: pa.Table) -> bool:
        """Checks that no score is NaN or infinite: in a threshold, NaN counts as larger than any
        number."""
        score = step.score
        if score not in table.column_names or not pa.types.is_floating(table[score].type):
            return True
        odd = table.filter(pc.invert(pc.is_finite(table[score])))[step.key].to_pylist()
        if odd:
            self.damaged.add((step.place(), shard))
            self.book.remake(
                "score",
                where,
                f"{score} is NaN or infinite in {counted(len(odd), 'row')}: {some(odd)}",
                step.label,
                step.fingerprint,
                shard,
            )
        return not odd


def read_whole(path: Path, columns: list[str]) -> tuple[pa.Schema, dict[bytes, bytes], pa.Table]:
    """Reads a file to its end, row group by row group; keeps some columns of it.

    Of a structure that holds an outcome, only its presence is kept, and whether it says `skipped`.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        names = [name for name in dict.fromkeys(columns) if name in schema.names]
        parts = []
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group).select(names)
            if "rejection" in names:
                rows = rows.append_column(_SKIPPED, is_skipped(rows))
            for name in _OUTCOME:
                if name in names:
                    rows = rows.set_column(
                        rows.schema.get_field_index(name), name, pc.is_valid(rows[name])
                    )
            parts.append(rows)
        fields = [
            pa.field(name, pa.bool_()) if name in _OUTCOME else schema.field(name) for name in names
        ]
        if "rejection" in names:
            fields.append(pa.field(_SKIPPED, pa.bool_()))
        kept = pa.schema(fields)
        table = (
            pa.concat_tables([part.cast(kept) for part in parts]) if parts else (kept.empty_table())
        )
        if table.num_rows != file.metadata.num_rows:
            raise ValueError(
                f"{counted(table.num_rows, 'row')} of the "
                f"{file.metadata.num_rows:,} that its footer says"
            )
        return schema, dict(file.metadata.metadata or {}), table


def _kept(table: pa.Table) -> pa.Table:
    """Some columns of the rows with neither a rejection nor an error."""
    gone = pc.or_(table["rejection"], table["error"])
    names = [name for name in table.column_names if name not in (*_OUTCOME, _SKIPPED)]
    return table.filter(pc.invert(gone)).select(names)


def _footer_problems(step: Step, shard: str, values: dict[str, Any], table: pa.Table) -> list[str]:
    problems = [
        f"it says {name} {values.get(name)!r}, the place {wanted!r}"
        for name, wanted in (
            ("step", step.label),
            ("shard", shard),
            ("fingerprint", step.fingerprint),
        )
        if values.get(name) != wanted
    ]
    outcome: dict[str, str] = {}
    outputs = note_each(
        table[step.key].to_pylist(),
        table["rejection"].to_pylist(),
        table["error"].to_pylist(),
        table[_SKIPPED].to_pylist(),
        outcome,
    )
    tally = Counter(outcome.values())
    counted = {
        "inputs": len(outcome),
        "kept": tally["kept"],
        "rejected": tally["rejected"],
        "failed": tally["failed"],
        "skipped": tally["skipped"],
        "outputs": outputs,
    }
    values = {"skipped": 0, **values}  # footers of earlier releases don't count them
    for name, number in counted.items():
        if values.get(name) != number:
            problems.append(f"it says {values.get(name)} {name}, the rows {number}")
    said: list[Any] = [values.get(name) for name in ("kept", "rejected", "failed", "skipped")]
    if all(isinstance(number, int) for number in said) and values.get("inputs") != sum(said):
        problems.append(
            f"{values.get('inputs')} inputs are not {said[0]} kept + {said[1]} "
            f"rejected + {said[2]} failed + {said[3]} skipped"
        )
    return problems


def _fits(found: pa.DataType, declared: pa.DataType) -> bool:
    """Whether a column can be read as declared: structures may lack members added since."""
    if found.equals(declared):
        return True
    if pa.types.is_struct(found) and pa.types.is_struct(declared):
        wanted = {member.name: member.type for member in declared}
        return all(
            member.name in wanted and _fits(member.type, wanted[member.name]) for member in found
        )
    if pa.types.is_map(found) and pa.types.is_map(declared):
        return _fits(found.key_type, declared.key_type) and _fits(
            found.item_type, declared.item_type
        )
    if pa.types.is_list(found) and pa.types.is_list(declared):
        return _fits(found.value_type, declared.value_type)
    return False
